"""Which form of an answer a client gets."""

from __future__ import annotations

import pytest

from detr_export.runtimes.serving.formats import JPEG, JSON, PNG, wanted_format
from detr_export.runtimes.serving.refusals import Refusal

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,*/*;q=0.8"


@pytest.mark.parametrize(
    ("name", "accept", "expected"),
    [
        (None, "", JSON),
        (None, "*/*", JSON),
        (None, "text/html", JSON),
        (None, "image/png", PNG),
        (None, "IMAGE/JPEG ", JPEG),
        (None, "image/*", PNG),
        (None, "image/webp, image/jpeg;q=0.9, image/png;q=0.8", JPEG),
        (None, "application/json;q=0.5, image/png;q=0.4", JSON),
        (None, "image/png;q=0, application/json;q=0.1", JSON),
        (None, "image/png;q=much", JSON),
        (None, ";;,,=", JSON),
        (None, FIREFOX, PNG),
        ("json", "image/png", JSON),
        ("image", "", PNG),
        ("image", "*/*", PNG),
        ("image", "image/jpeg", JPEG),
        ("jpeg", "image/png", JPEG),
        ("png", "", PNG),
    ],
)
def test_formats(name: str | None, accept: str, expected: str) -> None:
    assert wanted_format(name, accept) == expected


def test_an_unknown_format() -> None:
    with pytest.raises(Refusal, match="format is 'gif'; expected one of json, image, png, jpeg") as refused:
        wanted_format("gif", "")
    assert refused.value.status == 400
