"""Pictures become batches by their sizes: how much padding they have, how long one waits, and what a header says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.grouping import AHEAD, group_by_size, size_of_file, size_of_image
from detr_export.runtimes.processing.images import load_image

SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(30, 60, (300, 2)) // 4 * 4]


@pytest.mark.parametrize("max_padding", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_keep_to_their_limits(batch: int, max_padding: float) -> None:
    groups = list(group_by_size(list(enumerate(SIZES)), batch, max_padding))
    assert sorted(itertools.chain(*groups)) == list(range(len(SIZES)))
    for group in groups:
        assert 1 <= len(group) <= batch
        assert group == sorted(group)
        sizes = np.array([SIZES[number] for number in group])
        padded = sizes.max(axis=0).prod() * len(sizes)
        assert 1 - sizes.prod(axis=1).sum() / padded <= max_padding
    if batch > 1:
        assert max(map(len, groups)) > 1


def test_more_padding_gives_fewer_batches() -> None:
    counts = [len(list(group_by_size(list(enumerate(SIZES)), 8, share))) for share in (0.0, 0.1, 0.5)]
    assert counts[0] > counts[1] > counts[2]


def test_no_item_waits_for_long() -> None:
    batch, taken = 4, 0

    def stream() -> Iterator[tuple[int, tuple[int, int]]]:
        nonlocal taken
        for number in itertools.count():  # endless: the first one is the only one of its size
            taken = number + 1
            yield number, (10, 10) if number == 0 else (20, 20)

    groups = group_by_size(stream(), batch)
    assert next(groups) == [1, 2, 3, 4]
    assert taken == 5
    before = list(itertools.takewhile(lambda group: group != [0], groups))
    assert taken == AHEAD * batch + 1
    assert len(before) == AHEAD - 1


def test_an_item_without_a_size_is_alone_and_keeps_nobody_waiting() -> None:
    sizes = [(8, 8), None, (8, 8), None]
    assert list(group_by_size(list(enumerate(sizes)), 2)) == [[1], [0, 2], [3]]


@pytest.mark.parametrize(
    ("batch", "max_padding", "message"),
    [(0, 0.0, "batch is 0"), (2, 1.0, "max_padding is 1.0"), (2, -0.1, "is -0.1"), (2, float("nan"), "is nan")],
)
def test_refuses(batch: int, max_padding: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_by_size([], batch, max_padding)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_says_how_large_the_picture_will_be(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    loaded = load_image(file)
    assert size_of_file(file) == (loaded.height, loaded.width) == ((40, 30) if orientation > 4 else (30, 40))


def test_a_header_is_read_without_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("png", "jpg", "gif"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"a.{suffix}")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("the pixels were decoded"))
    for file in tmp_path.iterdir():
        assert size_of_file(file) == (30, 40)


def test_what_is_no_picture_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"hello")
    assert size_of_file(tmp_path / "a.jpg") is None
    assert size_of_file(tmp_path / "b.jpg") is None
    assert size_of_file(tmp_path) is None


@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_of_images_of_all_kinds(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.jpg"
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    data = file.read_bytes()
    for source in (
        file,
        str(file),
        data,
        bytearray(data),
        memoryview(data),
        np.frombuffer(data, np.uint8),
        Image.open(file),
    ):
        loaded = load_image(source)
        assert size_of_image(source) == (loaded.height, loaded.width) == ((40, 30) if orientation > 4 else (30, 40))
    pixels = np.zeros((30, 40, 3), np.uint8)
    for source in (pixels, pixels[..., ::-1], memoryview(pixels), Image.fromarray(pixels)):
        assert size_of_image(source) == (30, 40)


@pytest.mark.parametrize("source", [b"", b"hello", "nothing.jpg", np.zeros((4, 4), np.uint8), 3, None])
def test_what_is_no_image_has_no_size(source: Any) -> None:
    assert size_of_image(source) is None
