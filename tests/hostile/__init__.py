"""Hostile input and hostile circumstances: what must neither crash, hang, nor leave anything behind."""
