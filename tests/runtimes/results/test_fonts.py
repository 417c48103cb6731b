"""Fonts for names in any script: one that has the characters, or a warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from detr_export.runtimes.results import fonts
from detr_export.runtimes.results.drawing import draw_boxes

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(autouse=True)
def no_memory() -> Iterator[None]:
    """What was found out about this system's fonts is found out again."""
    caches = (fonts._own, fonts._file_with, fonts._font_files, fonts._say_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def drawn(font: fonts.Font, text: str) -> bytes:
    image = Image.new("L", (400, 60))
    ImageDraw.Draw(image).text((5, 5), text, fill=255, font=font)
    return image.tobytes()


def test_ascii_is_drawn_in_pillow_s_own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: pytest.fail("it looked for fonts"))
    assert fonts.font_of("person 0.98", 20).getname() == ImageFont.load_default(20).getname()  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["café", "piñata", "кошка", "Ærøskøbing", "σκύλος", "قطة"])
def test_other_letters_are_drawn_in_a_font_that_has_them(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter([DEJAVU]))
    font = fonts.font_of(f"{text} 0.98", 20)
    assert font.getname() == ("DejaVu Sans", "Book")  # type: ignore[union-attr]
    assert drawn(font, text) != drawn(font, fonts._NO_CHARACTER * len(text))
    assert caplog.records == []


def test_a_font_without_the_characters_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.ttf", "b.otf"):
        (tmp_path / name).write_bytes(b"no font")
    (tmp_path / "c.ttf").write_bytes((DEJAVU / "STIXSizOneSymReg.ttf").read_bytes())
    (tmp_path / "LastResort.ttf").write_bytes((DEJAVU / "LastResortHE-Regular.ttf").read_bytes())
    below = tmp_path / "below"
    below.mkdir()
    (below / "z.TTF").write_bytes((DEJAVU / "DejaVuSans.ttf").read_bytes())
    monkeypatch.setattr(fonts, "_folders", lambda: iter([tmp_path, tmp_path / "missing"]))
    assert fonts.font_of("кошка", 20).path == str(below / "z.TTF")  # type: ignore[union-attr]


def test_where_no_font_has_them_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter([DEJAVU]))
    picture = Image.new("RGB", (300, 200))
    boxes, scores, labels = np.array([[10, 50, 90, 90]] * 2, np.float32), np.array([0.9, 0.8], np.float32), np.array([1, 1])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            image = draw_boxes(picture, (200, 300), boxes, scores, labels, ["猫", "猫"])
    assert np.asarray(image).any()
    (message,) = (item.getMessage() for item in caplog.records)
    assert message == "no font of this system has all of 猫: names are drawn with boxes; install one, such as Noto Sans"
