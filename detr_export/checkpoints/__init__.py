"""Checkpoints on disk and on the hub: finding, reading, converting and writing them."""
