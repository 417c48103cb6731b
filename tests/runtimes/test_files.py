"""Files are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from detr_export.runtimes.errors import OutputError
from detr_export.runtimes.files import replacing, require_writable, sha256_of_files, user_path, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_moves_into_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.png"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"
    assert names(target.parent) == ["a.png"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError("full")])
def test_a_failing_block_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_reader_keeps_the_old_file(tmp_path: Path) -> None:
    """The new content is moved into place, never written over the old one."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        write_atomically(target, b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with replacing(target) as first, replacing(target) as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert target.read_bytes() == b"1"  # the outer block ends last
    assert names(tmp_path) == ["a.bin"]


def test_write_atomically(tmp_path: Path) -> None:
    assert write_atomically(tmp_path / "b" / "a", b"12") == tmp_path / "b" / "a"
    assert (tmp_path / "b" / "a").read_bytes() == b"12"
    write_atomically(tmp_path / "b" / "a", b"3")
    assert (tmp_path / "b" / "a").read_bytes() == b"3"


def test_a_full_disk_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"cannot write .*/a: No space left on device"):
        write_atomically(tmp_path / "a", b"12")
    assert names(tmp_path) == []


def test_a_failing_move_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "a" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write .*/a: "):
        write_atomically(tmp_path / "a", b"12")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("path", ["file/a", "file/b/a", "x" * 300])
def test_folders_that_cannot_be_written(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / path, b"")


def test_require_writable(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    require_writable(tmp_path / "a.onnx", overwrite=True, suffix=".onnx")
    require_writable(tmp_path / "b" / "c" / "d.onnx", overwrite=False)
    assert names(tmp_path) == ["a.onnx"]  # it asks, and makes nothing


@pytest.mark.parametrize(
    ("path", "overwrite", "suffix", "message"),
    [
        ("there", False, "", "there exists; add --overwrite to replace it"),
        ("folder", True, "", "folder is a folder; give the name of a file"),
        ("there/b", True, "", "cannot write to .*there: it is not a folder"),
        ("there/b/c", True, "", "cannot write to .*there: it is not a folder"),
        (
            "new.txt",
            True,
            ".onnx",
            r"new.txt does not end in .onnx, and other commands know .* by that; name it .*new.txt.onnx",
        ),
        ("pipe", True, "", "pipe is not a regular file; give another name"),
    ],
)
def test_require_writable_refuses(path: str, overwrite: bool, suffix: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=message):
        require_writable(tmp_path / path, overwrite, suffix)


def test_user_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a") == Path("/home/me/a")
    assert user_path("a~") == Path("a~")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


def test_sha256_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1" * 3_000_000)
    (tmp_path / "b").write_bytes(b"2")
    assert sha256_of_files([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(b"1" * 3_000_000 + b"2").hexdigest()
    assert sha256_of_files([tmp_path / "b", tmp_path / "a"]) == hashlib.sha256(b"2" + b"1" * 3_000_000).hexdigest()
