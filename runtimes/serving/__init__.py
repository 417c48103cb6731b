"""Answers HTTP requests with a `Predictor`. It needs the extra `serve`."""
