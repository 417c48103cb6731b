"""Written files have the mode of the umask, go through no link of another user, and are not left over."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_export.benchmarks.plot_style import write_png
from detr_export.engines.lock import build_lock
from detr_export.runtimes import temporary
from detr_export.runtimes.backends.ort.providers import engine_cache
from detr_export.runtimes.errors import ArtifactError, OutputError
from detr_export.runtimes.files import (
    make_folder,
    make_private_folder,
    replacing,
    replacing_together,
    require_own_links,
    require_writable,
    write_atomically,
)
from detr_export.runtimes.temporary import Temporary, remove_all, temporary_file, temporary_folder
from detr_export.verification.golden import GoldenCase
from detr_export.verification.golden.writing import write_golden

OTHER = 12345  # a user id
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- modes --------------------------------------------------------------------------------------------------------------


def _bytes(file: Path) -> None:
    write_atomically(file, b"1")


def _block(file: Path) -> None:
    with replacing(file) as place:
        place.write_bytes(b"1")


def _together(file: Path) -> None:
    with replacing_together(file) as place:
        place.write_bytes(b"1")


def _plot(file: Path) -> None:
    from matplotlib.figure import Figure

    write_png(Figure(), file)


WRITERS: dict[str, Callable[[Path], None]] = {"bytes": _bytes, "block": _block, "together": _together, "plot": _plot}


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o000], indirect=True)
@pytest.mark.parametrize("writer", WRITERS)
def test_files_and_folders_follow_the_umask(writer: str, umask: int, tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.png"
    WRITERS[writer](file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o777 & ~umask
    # The mode of the file that was there does not stay.
    file.chmod(0o604)
    WRITERS[writer](file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o022, 0o077], indirect=True)
def test_golden_data_follow_the_umask(umask: int, tmp_path: Path) -> None:
    case = GoldenCase("a", {"x": np.zeros(1, np.float32)}, {"y": np.zeros(1, np.float32)})
    write_golden(tmp_path / "golden", "a.onnx", {"name": "a", "sha256": "b"}, "tensors", [case], {"y": 1.0})
    assert stat.S_IMODE((tmp_path / "golden").stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "golden").iterdir()} == {0o666 & ~umask}
    assert names(tmp_path) == ["golden"]


@pytest.mark.parametrize("umask", [0o000], indirect=True)
def test_the_folder_for_temporary_files_is_private(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(tmp_path) == []


# ---- links --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp, and beside it a folder `target`."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.png").write_bytes(b"old")
    return folder


def link(place: Path, target: Path | str, owner: int) -> Path:
    place.symlink_to(target)
    os.chown(place, owner, owner, follow_symlinks=False)
    return place


ACTS: dict[str, Callable[[Path], Any]] = {
    **WRITERS,
    "make_folder": make_folder,
    "make_private_folder": lambda path: make_private_folder(path, "go away"),
    "require_writable": lambda path: require_writable(path, overwrite=True),
}


@as_root
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("way", ["link/a.png", "link/new/a.png", "own/a.png"])
def test_a_link_of_another_user_is_refused(way: str, act: str, shared: Path) -> None:
    link(shared / "link", "../target", OTHER)
    link(shared / "own", "link", 0)  # a link of this user that leads to it
    with pytest.raises(OutputError, match=rf"shared/link is a link that another user \(uid {OTHER}\) put into a folder"):
        ACTS[act](shared / way)
    assert (shared.parent / "target" / "a.png").read_bytes() == b"old"
    assert names(shared) == ["link", "own"]


@as_root
def test_a_link_at_the_target_itself(shared: Path) -> None:
    link(shared / "a.png", "../target/a.png", OTHER)
    with pytest.raises(OutputError, match=r"a\.png is a link that another user"):
        require_writable(shared / "a.png", overwrite=True)


@as_root
@pytest.mark.parametrize(
    ("owner", "folder_owner", "mode"),
    [(0, 0, 0o1777), (OTHER, OTHER, 0o1777), (OTHER, 0, 0o755), (OTHER, 0, 0o1755), (OTHER, 0, 0o777)],
    ids=["own", "of the folder's owner", "in a plain folder", "sticky, not for all", "for all, not sticky"],
)
def test_other_links_are_followed_as_linux_does(owner: int, folder_owner: int, mode: int, shared: Path) -> None:
    os.chown(shared, folder_owner, folder_owner)
    shared.chmod(mode)
    link(shared / "link", "../target", owner)
    write_atomically(shared / "link" / "a.png", b"new")
    assert (shared.parent / "target" / "a.png").read_bytes() == b"new"


def test_a_link_at_the_target_is_replaced(tmp_path: Path) -> None:
    """What it leads to stays."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "a").symlink_to("real")
    write_atomically(tmp_path / "a", b"new")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"old"


@pytest.mark.parametrize("path", ["loop/a", "missing/a", "file/a", "\0/a", "..", "../x/../y", "/", "."])
def test_looking_for_links_never_fails(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")
    require_own_links(path)
    require_own_links(Path(path))


# ---- folders for code and locks -----------------------------------------------------------------------------------------


def test_a_private_folder(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b", "go away")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    make_private_folder(tmp_path / "a" / "b", "go away")
    (tmp_path / "a" / "b").chmod(0o755)  # others may look
    make_private_folder(tmp_path / "a" / "b", "go away")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(OutputError, match=r"others may write to .*/a, .* code into it; run chmod go-w .*/a, or go away"):
        make_private_folder(tmp_path / "a", "go away")


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "detr-export").mkdir()
    os.chown(tmp_path / "detr-export", OTHER, OTHER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ArtifactError, match=rf"belongs to another user \(uid {OTHER}\), who could put code into it"):
        engine_cache("0" * 64)
    assert names(tmp_path / "detr-export") == []


def test_a_lock_in_a_folder_that_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with build_lock("key"):
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(OutputError, match="others may write to"), build_lock("key"):
        pass


# ---- temporary files ----------------------------------------------------------------------------------------------------


def test_names_cannot_be_guessed(tmp_path: Path) -> None:
    made = [temporary_file(tmp_path / "a.png") for _ in range(20)]
    assert len({item.path for item in made}) == 20
    assert all(re.fullmatch(r"\.detr-export-[0-9a-f]{16}\.png", item.path.name) for item in made)
    for item in made:
        item.remove()
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_there_already_is_not_used(is_folder: bool, tmp_path: Path) -> None:
    """Neither is a link followed that somebody put there."""
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real" if is_folder else "new")
    with pytest.raises(FileExistsError):
        Temporary(tmp_path, "a", is_folder)
    assert not (tmp_path / "new").exists()
    assert names(tmp_path / "real") == []


def test_all_of_them_go_at_the_end(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"")
        assert len(names(tmp_path)) == 2
        remove_all()
        assert names(tmp_path) == []
    assert names(tmp_path) == []


def test_a_forked_process_removes_nothing_of_its_parent(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a") as place:
        child = os.fork()
        if child == 0:
            remove_all()
            os._exit(0)
        os.waitpid(child, 0)
        assert place.exists()


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder has been looked at yet."""
    monkeypatch.setattr(temporary, "_swept", set())


def aged(path: Path, seconds: float = 100) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.mark.usefixtures("sweeping")
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".detr-export-0123456789abcdef.png").write_bytes(b"half")
    (tmp_path / ".detr-export-fedcba9876543210").mkdir()
    (tmp_path / ".detr-export-fedcba9876543210" / "a.onnx").write_bytes(b"half")
    for path in tmp_path.iterdir():
        aged(path)
    write_atomically(tmp_path / "a", b"1")
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("sweeping")
@pytest.mark.parametrize(
    "name",
    [".detr-export-0123456789abcde.png", ".detr-export-0123456789abcdeg", ".a-0123456789abcdef.png", "detr-export-me"],
)
def test_files_with_other_names_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    aged(tmp_path / name)
    write_atomically(tmp_path / "a", b"1")
    assert names(tmp_path) == sorted([name, "a"])


@pytest.mark.usefixtures("sweeping")
def test_what_is_young_stays(tmp_path: Path) -> None:
    (tmp_path / ".detr-export-0123456789abcdef.png").write_bytes(b"half")
    write_atomically(tmp_path / "a", b"1")
    assert len(names(tmp_path)) == 2


@pytest.mark.usefixtures("sweeping")
@as_root
def test_what_is_of_another_user_stays(tmp_path: Path) -> None:
    place = tmp_path / ".detr-export-0123456789abcdef.png"
    place.write_bytes(b"half")
    os.chown(aged(place), OTHER, OTHER)
    write_atomically(tmp_path / "a", b"1")
    assert len(names(tmp_path)) == 2


@pytest.mark.usefixtures("sweeping")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_bytes(b"")
    aged(tmp_path / "folder")
    (tmp_path / ".detr-export-0123456789abcdef").symlink_to("folder")
    write_atomically(tmp_path / "a", b"1")
    assert names(tmp_path / "folder") == ["mine"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_living_process_uses_stays(is_folder: bool, tmp_path: Path) -> None:
    """It is locked, however old it is."""
    made = temporary_folder(tmp_path / "a") if is_folder else temporary_file(tmp_path / "a")
    aged(made.path)
    program = "import sys; from detr_export.runtimes.files import write_atomically; write_atomically(sys.argv[1], b'1')"
    root = str(Path(__file__).parent.parent.parent)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "b")], check=True, env={**os.environ, "PYTHONPATH": root})
    assert made.path.exists()
    made.remove()
    assert names(tmp_path) == ["b"]
