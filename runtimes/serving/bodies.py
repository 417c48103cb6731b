"""The bytes of the picture in a request's body, counted while they arrive."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from detr_export.runtimes.serving.refusals import BAD_REQUEST, CLIENT_GONE, TOO_LARGE, WRONG_TYPE, Refusal

FIELD = "image"  # of a form
_FORM, _BYTES = "multipart/form-data", "application/octet-stream"


async def picture_bytes(request: Request, max_bytes: int) -> bytes:
    """Reads the body: an image file as it is, or the field `image` of a form.

    Args:
        request: the whole body is still to be read.
        max_bytes: of the body. One that is larger is not read to its end.

    Raises:
        Refusal: 400, the form is malformed or does not have the field once; 413, the body is too large; 415, it is neither
            an image nor a form; 499, the client has left.
    """
    kind = request.headers.get("content-type", _BYTES).partition(";")[0].strip().lower()
    if kind not in (_FORM, _BYTES) and not kind.startswith("image/"):
        raise Refusal(WRONG_TYPE, f"the body is {kind!r}; expected image/*, {_BYTES}, or {_FORM} with the field {FIELD!r}")
    try:
        announced = int(request.headers.get("content-length", "0"))
    except ValueError:
        announced = 0
    if announced > max_bytes:
        raise _too_large(max_bytes)
    counted = _counted(request, max_bytes)
    try:
        if kind == _FORM:
            return await _field(counted)
        return b"".join([chunk async for chunk in counted.stream()])
    except ClientDisconnect as error:
        raise Refusal(CLIENT_GONE, "the client has left") from error


def _counted(request: Request, max_bytes: int) -> Request:
    """The same request, whose body cannot be read further than the limit."""
    read = 0

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > max_bytes:
            raise _too_large(max_bytes)
        return message

    return Request(request.scope, receive)


async def _field(request: Request) -> bytes:
    """The file in the field `image` of a form."""
    try:
        async with request.form() as form:
            found = form.getlist(FIELD)
            if len(found) != 1:
                names = ", ".join(repr(name) for name in list(form)[:10]) or "none"
                raise Refusal(
                    BAD_REQUEST,
                    f"the form has the field {FIELD!r} {len(found)} times (its fields: {names}); expected it once",
                )
            (file,) = found
            if not isinstance(file, UploadFile):
                raise Refusal(BAD_REQUEST, f"the field {FIELD!r} is text; expected a file")
            return await file.read()
    except (HTTPException, FormParserError) as error:  # the first wraps the second, but not in old releases
        reason = error.detail if isinstance(error, HTTPException) else str(error)
        raise Refusal(BAD_REQUEST, f"the form cannot be read: {reason}") from error


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(TOO_LARGE, f"the body is too large; expected at most {max_bytes} bytes")
