"""Latency and throughput: variants in processes of their own, measured in turns."""
