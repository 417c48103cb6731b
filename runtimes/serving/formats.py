"""In which form a client wants its answer, and that form of a result."""

from __future__ import annotations

import io
import json
from typing import Optional

from PIL import Image

from detr_export.runtimes.serving.refusals import BAD_REQUEST, Refusal
from detr_export.runtimes.tasks import Result, document_of, drawing_of

JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
# What may stand in `format=`, and what may stand in `Accept`.
_NAMED = {"json": JSON, "image": PNG, "png": PNG, "jpeg": JPEG}
_ACCEPTED = {JSON: JSON, "application/*": JSON, "*/*": JSON, PNG: PNG, "image/*": PNG, JPEG: JPEG}
_JPEG_QUALITY = 90


def wanted_format(name: Optional[str], accept: str) -> str:
    """`JSON`, `PNG` or `JPEG`.

    Args:
        name: the query's `format`; it decides if it is there. `image` is the picture that `accept` prefers, or PNG.
        accept: the header. Of the kinds that we can make, the one with the highest `q` is taken, the first of several. JSON
            is taken where it names none.

    Raises:
        Refusal: 400, there is no such format.
    """
    preferred = [_ACCEPTED[kind] for kind in _by_preference(accept) if kind in _ACCEPTED]
    if name is None:
        return preferred[0] if preferred else JSON
    if name not in _NAMED:
        raise Refusal(BAD_REQUEST, f"format is {name!r}; expected one of {', '.join(_NAMED)}")
    if name == "image":
        return next((kind for kind in preferred if kind != JSON), PNG)
    return _NAMED[name]


def _by_preference(accept: str) -> list[str]:
    """The media types of an `Accept` header, the most wanted first; those with q=0 are left out."""
    found = []
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            share = float(quality)
        except ValueError:
            share = 0.0
        if share > 0:
            found.append((share, kind))
    return [kind for _, kind in sorted(found, key=lambda pair: -pair[0])]


def encoded(result: Result, picture: Image.Image, form: str) -> bytes:
    """The body of an answer: the result as a JSON document, or drawn on its picture."""
    if form == JSON:
        return json.dumps(document_of(result)).encode()
    stream = io.BytesIO()
    drawing = drawing_of(result, picture)
    if form == JPEG:
        drawing.save(stream, "JPEG", quality=_JPEG_QUALITY)
    else:
        drawing.save(stream, "PNG")
    return stream.getvalue()
