"""Fuzzing: `python -m tests.fuzz` feeds mutated documents, files and pictures to the readers. See docs/reliability.md."""
