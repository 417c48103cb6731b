"""Annotated data sets: where their files are, what is in them, and what is wrong with it."""
