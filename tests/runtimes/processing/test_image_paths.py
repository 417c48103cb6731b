"""Which files are pictures, and in which order they come."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.image_paths import Listing, image_suffixes, iter_image_paths, list_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.JPG", "a.png", "c.txt", ".hidden.png", "x[1].png", "deep/d.webp", "deep/er/e.jpeg", "no/f.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["."], ["a.png", "b.JPG", "deep/d.webp", "deep/er/e.jpeg", "x[1].png"]),
        (["b.JPG", "."], ["b.JPG", "a.png", "deep/d.webp", "deep/er/e.jpeg", "x[1].png"]),
        (["./b.JPG", "b.JPG", "deep/../b.JPG"], ["b.JPG"]),
        (["*.png"], ["a.png", "x[1].png"]),
        (["c.txt"], ["c.txt"]),
        (["x[1].png"], ["x[1].png"]),
        (["deep/**"], ["deep/d.webp", "deep/er/e.jpeg"]),
        (["**/*.jpeg", "[ab].*"], ["deep/er/e.jpeg", "a.png", "b.JPG"]),
        ("a.png", ["a.png"]),
        (Path("a.png"), ["a.png"]),
        ((p for p in ("a.png", Path("deep"))), ["a.png", "deep/d.webp", "deep/er/e.jpeg"]),
    ],
)
def test_paths_are_expanded_in_a_stable_order(folder: Path, patterns: Any, expected: list[str]) -> None:
    found = iter_image_paths(patterns)
    assert all(isinstance(path, Path) for path in found)
    assert [os.path.normpath(path) for path in found] == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a.png", "missing.png"], "missing.png does not exist"),
        (["*.bmp"], r"glob \*.bmp matches no file"),
        (["folder.*"], "matches no file"),
        (["no"], "folder no contains no images"),
        ([], "no images were named"),
        (["http://example.com/a.png"], "URL"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(folder: Path, patterns: list[str], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        iter_image_paths(patterns)


def test_every_suffix_that_pillow_reads_is_found(tmp_path: Path) -> None:
    suffixes = image_suffixes()
    assert suffixes >= {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
    assert not suffixes & {".eps", ".ps", ".pdf", ".mpg", ".h5", ".txt"}
    for suffix in suffixes:
        (tmp_path / f"photo{suffix.upper()}").touch()
    assert {path.suffix.lower() for path in iter_image_paths(tmp_path)} == suffixes


def test_a_plug_in_of_pillow_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photo.heic").touch()
    assert list_folder(tmp_path) == Listing((), Counter({".heic": 1}))
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    assert list_folder(tmp_path).pictures == (tmp_path / "photo.heic",)


def test_other_files_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("a.png", "b.txt", "B.TXT", "sub/c.md", "sub/README", ".d.png", ".e.txt", ".git/f.png", "sub/.g/h.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_folder(tmp_path) == Listing((tmp_path / "a.png",), Counter({".txt": 2, ".md": 1, "": 1}))


def test_the_order_is_that_of_the_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", "a-b/d.png", "a/b/e.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_folder(tmp_path).pictures]
    assert found == ["a/b/e.png", "a/c.png", "a-b/d.png", "a.png", "b.png"]


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    inside, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for name in (inside / "z/a.png", elsewhere / "b.png"):
        name.parent.mkdir(parents=True)
        name.touch()
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "z" / "up").symlink_to(inside, target_is_directory=True)
    (inside / "again").symlink_to(inside / "z", target_is_directory=True)  # before `z` in the order of names
    (inside / "other").symlink_to(elsewhere, target_is_directory=True)
    (inside / "self.png").symlink_to(inside / "self.png")
    (inside / "dead.png").symlink_to(inside / "nothing.png")
    (inside / "dead").symlink_to(inside / "nothing", target_is_directory=True)
    assert list_folder(inside) == Listing((inside / "other/b.png", inside / "z/a.png"), Counter())


def test_a_folder_for_results_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "out/a.png", "sub/out/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_folder(tmp_path, tmp_path / "sub" / ".." / "out").pictures
    assert found == (tmp_path / "a.png", tmp_path / "sub/out/b.png")
    assert list_folder(tmp_path / "out", tmp_path / "out").pictures == (tmp_path / "out/a.png",)
