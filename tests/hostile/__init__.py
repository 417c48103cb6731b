"""Hostile inputs: each is one clear error, before work and memory."""
