"""The list of pictures, from all that can be named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detr_export.runtimes.distributed import listing, stores
from detr_export.runtimes.distributed.listing import Entry, find_pictures, read_listing, write_listing
from detr_export.runtimes.errors import DetrError, ImageError
from detr_export.runtimes.limits import raise_limits


def entries(count: int) -> list[Entry]:
    return [Entry(f"{number}.jpg", f"{number}.jpg", "file", b"%d.jpg" % number) for number in range(count)]


@pytest.mark.parametrize(("first", "stop"), [(0, 3), (5, 6), (2, 11), (0, 27), (8, 27), (26, 27), (4, 4)])
def test_reading_a_piece(first: int, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_GROUP", 4)
    monkeypatch.setattr(listing, "_PIECE", 8)
    assert write_listing(entries(27), tmp_path) == 27
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{number:06d}.parquet" for number in range(4)]
    assert read_listing(tmp_path, first, stop) == entries(27)[first:stop]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Empty files: the list does not look into pictures."""
    for name in ("a/2.jpg", "a/1.PNG", "a/b/3.webp", "a/notes.txt", "a/.hidden.jpg"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def test_files_and_stores_each_once(place: Path) -> None:
    found = [*find_pictures([f"{place}/a", f"{place}/a/../a/2.jpg", f"{place}/a/2.jpg"], None, place / "out")]
    assert [entry.path for entry in found] == [f"{place}/a/{name}" for name in ("1.PNG", "2.jpg", "b/3.webp")]
    assert [entry.file for entry in found] == ["1.PNG", "2.jpg", "b/3.webp"]
    stored = [*find_pictures([f"file://{place}/a/", f"file://{place}/a/2.jpg"], None, place / "out")]
    assert [entry.path for entry in stored] == [f"file://{place}/a/{name}" for name in ("1.PNG", "2.jpg", "b/3.webp")]
    assert [entry.file for entry in stored] == ["1.PNG", "2.jpg", "b/3.webp"]


def test_relative_paths_become_absolute_for_other_machines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert [entry.path for entry in find_pictures(["a/2.jpg"], None, place / "out")] == ["a/2.jpg"]
    assert [entry.path for entry in find_pictures(["a/2.jpg"], None, place / "out", absolute=True)] == [f"{place}/a/2.jpg"]


def test_what_is_refused(place: Path) -> None:
    pq.write_table(pa.table({"id": [1], "size": ["x"]}), place / "t.parquet")
    cases = [
        (["-"], None, "stdin"),
        ([f"{place}/t.parquet"], None, "is a table; say which column has the pictures: --column NAME"),
        (
            [f"{place}/t.parquet"],
            "image",
            "t.parquet has no column .image.; it has id, size; name one of them",
        ),
        ([f"{place}/t.parquet"], "id", "the column id of .* is int64; expected paths"),
        ([f"{place}/a"], "image", "contains no Parquet files"),
        ([f"{place}/nothing"], "image", "does not exist"),
        ([f"{place}/nothing"], None, "does not exist"),
        ([f"file://{place}/nothing"], None, "does not exist: expected a file or folder"),
        (["nostore://bucket/a"], None, "cannot read nostore://bucket/a: "),
    ]
    for given, column, message in cases:
        with pytest.raises(DetrError, match=message):
            list(find_pictures(given, column, place / "out"))


def test_the_limit_of_a_stored_picture(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "a/2.jpg").write_bytes(b"0" * 100)
    assert stores.read_stored(f"file://{place}/a/2.jpg") == b"0" * 100
    monkeypatch.setenv("DETR_EXPORT_LIMITS", "")
    try:
        raise_limits(download_bytes=99)
        with pytest.raises(ImageError, match=r"2\.jpg is too large: expected at most"):
            stores.read_stored(f"file://{place}/a/2.jpg")
    finally:
        raise_limits(download_bytes=64 * 2**20)
