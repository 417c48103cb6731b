"""`Refusal`: an answer that is not a result. Every one has a status and a sentence."""

from __future__ import annotations

import logging
from typing import Optional

from detr_export.runtimes.errors import DetrError, ImageError, InputError

BAD_REQUEST, TIMED_OUT, TOO_LARGE, WRONG_TYPE, TOO_MANY = 400, 408, 413, 415, 429
CLIENT_GONE = 499  # nobody reads this one; it is counted
FAILED, STOPPING, TOO_LATE = 500, 503, 504
RETRY_AFTER = 1  # seconds after which it makes sense to try again

logger = logging.getLogger("detr_export.serving")


class Refusal(Exception):
    """Why a request gets no result.

    Args:
        status: of HTTP.
        message: what was wrong, what was expected, and what helps.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, status: int, message: str, retry_after: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told about an error. An error that is not the client's own also goes to the log, on one line."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, (ImageError, InputError)):
        return Refusal(BAD_REQUEST, str(error))
    text = " ".join(f"{type(error).__name__}: {error}".split())
    logger.error("error: a request failed: %s", text)
    if isinstance(error, DetrError):
        return Refusal(FAILED, str(error))
    return Refusal(FAILED, "the server failed on this request; its log says why")
