"""Measuring: latency, accuracy and parity of exported files."""
