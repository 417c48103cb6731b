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
from detr_export.runtimes.results.captions import caption_of, plate_size
from detr_export.runtimes.results.drawing import draw_attention, draw_boxes, draw_segments
from detr_export.runtimes.results.segments import Segment

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


SCRIPTS = {"Chinese": "猫", "Arabic": "قطة", "Devanagari": "बिल्ली", "emoji": "😀 cat", "Cyrillic": "кошка"}


@pytest.mark.parametrize("name", SCRIPTS.values(), ids=SCRIPTS)
def test_without_a_font_a_number_stands_for_the_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two classes differ in a picture, and the log says once why they have numbers."""
    monkeypatch.setattr(fonts, "_folders", lambda: iter([tmp_path]))
    with caplog.at_level(logging.WARNING):
        pictures = [boxes_with(name, label) for label in (3, 4, 3)]
    assert pictures == [boxes_with(f"#{label}", label) for label in (3, 4, 3)]
    (message,) = (item.getMessage() for item in caplog.records)
    signs = "".join(sorted({character for character in name if not character.isascii()}))
    assert message == (
        f"no font of this system has all of {signs}: a number, such as #3, stands for the name of the class; install a font "
        "that has them, such as one of Noto Sans"
    )


def boxes_with(name: str, label: int) -> bytes:
    """A grey picture with one box; the colour of all is the same."""
    boxes, scores = np.array([[10, 50, 90, 90]], np.float32), np.array([0.9], np.float32)
    drawn = draw_boxes(Image.new("RGB", (300, 200)), (200, 300), boxes, scores, np.array([label]), [name])
    return drawn.tobytes()


def test_segments_and_attention_have_numbers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter([tmp_path]))
    ids, image = np.ones((150, 200), np.int32), Image.new("RGB", (200, 150))
    drawn = [
        draw_segments(image, ids, [Segment(1, 5, name, 0.9, ids.size, (0, 0, 200, 150))]) for name in ("猫", "#5", "#6")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes() != drawn[2].tobytes()
    box, score, weights = (
        np.array([[10, 50, 90, 90]], np.float32),
        np.array([0.9], np.float32),
        np.ones((1, 4, 5), np.float32),
    )
    sheets = [draw_attention(image, (150, 200), box, score, np.array([5]), [name], weights) for name in ("猫", "#5")]
    assert sheets[0].tobytes() == sheets[1].tobytes()


@pytest.mark.parametrize("name", ["Arabic", "Devanagari"])
def test_without_shaping_a_number_stands_for_the_name(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Letters side by side, in the wrong order, are not the name."""
    monkeypatch.setattr(fonts, "_file_with", lambda characters: DEJAVU / "DejaVuSans.ttf")
    for shapes, expected in ((True, SCRIPTS[name]), (False, "#2")):
        monkeypatch.setattr(fonts.features, "check", lambda feature, shapes=shapes: shapes and feature == "raqm")
        assert caption_of(SCRIPTS[name], 2, None, 16, 400) == expected
    assert caption_of("кошка", 2, None, 16, 400) == "кошка"  # nothing to join
    (message,) = (item.getMessage() for item in caplog.records)
    assert message.startswith("Pillow does not join the letters of ")
    assert message.endswith("install FriBiDi (libfribidi), which Pillow loads for that")


@pytest.mark.parametrize("text", ["a\u200db", "\ufeffcat", "\u2764\ufe0f"])
def test_characters_that_nobody_sees_need_no_font(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter([DEJAVU]))
    assert fonts.can_draw(text)


# ---- long names ---------------------------------------------------------------------------------------------------------

LONG = "table projected row header of the second kind, and of the third"


@pytest.mark.parametrize("room", range(60, 560, 50))
@pytest.mark.parametrize("score", [None, 0.987])
def test_a_long_name_is_cut_and_its_score_stays(room: int, score: float | None) -> None:
    text = caption_of(LONG, 1, score, 16, room)
    ending = "" if score is None else " 0.99"
    assert text.endswith(ending)
    name = text.removesuffix(ending)
    if name == LONG:
        assert plate_size(text, 16)[0] <= room
        return
    kept = name.removesuffix("...")
    assert name == kept + "..."
    assert LONG.startswith(kept)
    assert plate_size(text, 16)[0] <= room or kept == ""
    assert plate_size(LONG[: len(kept) + 1] + "..." + ending, 16)[0] > room or plate_size(LONG + ending, 16)[0] > room


def test_a_name_is_cut_no_more_than_it_has_to_be() -> None:
    shortest = plate_size(f"{LONG} 0.50", 16)[0]
    assert caption_of(LONG, 1, 0.5, 16, shortest) == f"{LONG} 0.50"
    one_less = caption_of(LONG, 1, 0.5, 16, shortest - 1)
    assert one_less.endswith("... 0.50")
    assert len(one_less) > len(LONG) - 5


def test_names_of_all_scripts_where_fonts_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter([DEJAVU]))
    assert caption_of("кошка", 1, 0.5, 16, 400) == "кошка 0.50"
    assert caption_of("猫", 1, 0.5, 16, 400) == "#1 0.50"
    assert caption_of("", 1, 0.5, 16, 400) == " 0.50"
