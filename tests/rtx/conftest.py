"""Fixtures of the tests that compile many forms."""

from tests.rtx.forms import make_file  # noqa: F401
