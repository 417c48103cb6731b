"""A long run of one predictor under many threads: `python -m tests.soak`. See docs/reliability.md."""
