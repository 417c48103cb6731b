"""What the command is given, and what it makes of it: names, places, pages, the web and stdin."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.fetching import fetch
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.limits import Limits
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.sources import Source, Sources, find_sources, pages_note, source_of

COLOURS = ("red", "lime", "blue")


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def content(form: str = "PNG", colour: str = "red") -> bytes:
    stream = io.BytesIO()
    picture(colour).save(stream, form)
    return stream.getvalue()


def paged(file: Path, sizes: tuple[tuple[int, int], ...] = ((40, 30),) * 3) -> Path:
    frames = [picture(colour, size) for colour, size in zip(COLOURS, sizes, strict=True)]
    lossless = {"lossless": True} if file.suffix == ".webp" else {}
    frames[0].save(file, save_all=True, append_images=frames[1:], **lossless)
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos/a.png", "photos/sub/a.png", "photos/sub/b.c.jpg", "more/a.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture("red").save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- names and places ---------------------------------------------------------------------------------------------------


def test_pictures_of_a_folder_are_called_by_their_paths_in_it(folder: Path) -> None:
    found = find_sources(["photos"])
    assert [(source.file, source.place) for source in found.pictures] == [
        ("a.png", Path("a")),
        ("sub/a.png", Path("sub/a")),
        ("sub/b.c.jpg", Path("sub/b.c")),
    ]
    assert [source.title for source in found.pictures] == ["photos/a.png", "photos/sub/a.png", "photos/sub/b.c.jpg"]
    assert found.skipped == Counter({".txt": 1})
    assert found.note() == "skipped 1 file that Pillow does not read: 1 .txt"


def test_no_two_pictures_have_one_name(folder: Path) -> None:
    found = find_sources(["photos/", "more", "a.png", "./photos/a.png", "*.png", "photos/sub"])
    assert [source.file for source in found.pictures] == [
        "a.png",
        "sub/a.png",
        "sub/b.c.jpg",
        "more/a.png",
        str(folder / "a.png"),
    ]


def test_a_note_counts_what_is_skipped_by_suffix() -> None:
    note = Sources((), Counter({".txt": 2, ".heic": 3, "": 2})).note()
    assert note == "skipped 7 files that Pillow does not read: 3 .heic, 2 without a suffix, 2 .txt"
    assert Sources((), Counter()).note() is None
    assert pages_note(0) is None
    assert str(pages_note(1)).startswith("1 file has more pages or frames")
    assert str(pages_note(2)).startswith("2 files have more pages or frames")


def test_drawn_copies_go_into_the_same_folders(tiny_onnx: Path, folder: Path) -> None:
    with Predictor.load(tiny_onnx) as predictor:
        for _ in range(2):  # the second time, the results are in the folder and are no pictures to predict on
            given = find_sources(["photos", "more"], Path("photos/out"))
            outcomes = list(predict_files(predictor, given.pictures, output=Path("photos/out"), overwrite=True))
            written = sorted(path.relative_to("photos/out").as_posix() for path in Path("photos/out").rglob("*.*"))
            assert written == ["a-2.png", "a.png", "predictions.json", "sub/a.png", "sub/b.c.png"]
            documents = [outcome.to_dict() for outcome in outcomes]
            assert [item["image"] for item in documents] == [
                "photos/a.png",
                "photos/sub/a.png",
                "photos/sub/b.c.jpg",
                "more/a.png",
            ]
            assert [item["file"] for item in documents] == ["a.png", "sub/a.png", "sub/b.c.jpg", "more/a.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nothing.png"], "nothing.png does not exist"),
        (["*.bmp"], "matches no file"),
        (["empty"], "folder empty contains no images"),
        ([], "no images were named"),
    ],
)
def test_what_leads_nowhere_is_refused(folder: Path, given: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=message):
        find_sources(given)


# ---- pages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp", "png", "avif"])
def test_all_pages_are_pictures(suffix: str, tmp_path: Path) -> None:
    file = paged(tmp_path / f"scan.{suffix}")
    pages = find_sources([str(file)], all_frames=True).pictures
    assert [(page.file, page.title, page.place) for page in pages] == [
        (f"{file}#{number}", f"{file}#{number}", Path(f"scan.page{number}")) for number in (1, 2, 3)
    ]
    for page, colour in zip(pages, COLOURS, strict=True):
        loaded, more = page.load()
        assert not more
        np.testing.assert_allclose(loaded.getpixel((20, 15)), picture(colour).getpixel((0, 0)), atol=4)
    first, more = source_of(file).load()
    assert more
    assert np.array_equal(np.asarray(first), np.asarray(load_image(file)))


def test_pages_have_their_own_sizes(tmp_path: Path) -> None:
    sizes = ((40, 30), (10, 20), (50, 60))
    file = paged(tmp_path / "scan.tiff", sizes)
    for source, (width, height) in zip(find_sources([str(file)], all_frames=True).pictures, sizes, strict=True):
        assert source.size() == (height, width)
        assert source.load()[0].size == (width, height)


def test_a_file_of_one_page_keeps_its_name(tmp_path: Path) -> None:
    for suffix in ("tiff", "gif", "webp", "png", "jpg"):
        file = tmp_path / f"a.{suffix}"
        picture("red").save(file)
        assert find_sources([str(file)], all_frames=True).pictures == (source_of(file),)
        assert source_of(file).load()[1] is False


def test_a_photograph_with_a_second_one_for_its_depth_has_one_page(tmp_path: Path) -> None:
    file = tmp_path / "phone.jpg"
    picture("red").save(file, "MPO", save_all=True, append_images=[picture("blue")])
    with Image.open(file) as opened:
        assert opened.n_frames == 2  # type: ignore[attr-defined]
    assert find_sources([str(file)], all_frames=True).pictures == (source_of(file),)
    assert source_of(file).load()[1] is False


def test_pages_in_results(tiny_onnx: Path, tmp_path: Path) -> None:
    paged(tmp_path / "scan.tiff")
    (tmp_path / "bad.tiff").write_bytes(b"II*\x00no tiff")
    given = find_sources([str(tmp_path)], all_frames=True)
    with Predictor.load(tiny_onnx) as predictor:
        outcomes = list(predict_files(predictor, given.pictures, 0.0, tmp_path / "out", batch=2))
        for outcome, colour in zip(outcomes[1:], COLOURS, strict=True):
            np.testing.assert_allclose(outcome.result.scores, predictor.detect(picture(colour), 0.0).scores, atol=1e-4)  # type: ignore[union-attr]
    assert outcomes[0].error is not None
    documents = [outcome.to_dict() for outcome in outcomes]
    assert [item.get("page") for item in documents] == [None, 1, 2, 3]
    assert [item["file"] for item in documents] == ["bad.tiff", "scan.tiff#1", "scan.tiff#2", "scan.tiff#3"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"scan.page{number}.png" for number in (1, 2, 3)}
    assert outcomes[1].summary().startswith(f"{tmp_path / 'scan.tiff'}#1: ")


def test_a_page_that_is_not_there(tmp_path: Path) -> None:
    file = paged(tmp_path / "scan.tiff")
    missing = Source(file, "scan.tiff#4", Path("scan.page4"), page=4)
    with pytest.raises(ImageError, match=r"scan.tiff#4 has no page 4 that can be read"):
        missing.load()
    assert missing.size() is None


# ---- stdin --------------------------------------------------------------------------------------------------------------


def test_stdin_holds_one_picture() -> None:
    (source,) = find_sources(["-", "-"], stdin=io.BytesIO(content())).pictures
    assert (source.image, source.file, source.place) == ("-", "-", Path("stdin"))
    assert source.load()[0].tobytes() == picture("red").tobytes()
    assert source.size() is None


def test_stdin_may_have_pages(tmp_path: Path) -> None:
    data = io.BytesIO(paged(tmp_path / "scan.tiff").read_bytes())
    pages = find_sources(["-"], all_frames=True, stdin=data).pictures
    assert [page.file for page in pages] == ["-#1", "-#2", "-#3"]
    assert [page.load()[0].getpixel((0, 0)) for page in pages] == [picture(name).getpixel((0, 0)) for name in COLOURS]


@pytest.mark.parametrize(("data", "message"), [(b"", "- is empty"), (b"hello", "- is not an image that Pillow reads")])
def test_stdin_without_a_picture(data: bytes, message: str) -> None:
    (source,) = find_sources(["-"], stdin=io.BytesIO(data)).pictures
    with pytest.raises(ImageError, match=message):
        source.load()


def test_stdin_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_export.runtimes.sources.current", lambda: Limits(download_bytes=2**20))
    assert find_sources(["-"], stdin=io.BytesIO(bytes(2**20))).pictures
    with pytest.raises(ImageError, match="stdin holds more than 1 MiB"):
        find_sources(["-"], stdin=io.BytesIO(bytes(2**20 + 1)))


# ---- the web ------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A server with a few pictures and a few faults."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a%20picture.png")
            self.end_headers()
        elif path == "/to-a-file.png":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif path == "/a%20picture.png":
            self._answer(content())
        elif path == "/text":
            self._answer(b"hello")
        elif path == "/large":
            self._answer(bytes(2000))
        elif path == "/endless":  # says no length
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(2000))
        else:
            self.send_error(404)

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["a%20picture.png", "a picture.png", "moved.png", "a%20picture.png?size=large#top"])
def test_an_address_is_a_picture(server: str, path: str) -> None:
    (source,) = find_sources([f"{server}/{path}"]).pictures
    assert (source.image, source.file) == (f"{server}/{path}", f"{server}/{path}")
    assert source.load()[0].tobytes() == picture("red").tobytes()
    assert source.size() is None


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://example.org/photos/street.final.jpg?size=1", "street.final"),
        ("HTTPS://example.org/a%2Fb%00c.png", "b_c"),
        ("https://example.org/", "example.org"),
        ("https://example.org:80/..", "example.org_80"),
        ("https://example.org/.png", "png"),
        (f"https://example.org/{'a' * 300}.png", "a" * 100),
    ],
)
def test_a_drawn_copy_of_an_address_has_a_plain_name(address: str, place: str) -> None:
    assert find_sources([address]).pictures[0].place == Path(place)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.png", "the server answered 404 Not Found; check the address"),
        ("text", "/text is not an image that Pillow reads"),
        ("to-a-file.png", "302"),
    ],
)
def test_what_a_server_does_not_have(server: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as raised:
        find_sources([f"{server}/{path}"]).pictures[0].load()
    assert str(raised.value).startswith(f"{server}/{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["large", "endless"])
def test_a_file_that_is_too_large_is_not_kept(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}", max_bytes=2000) == bytes(2000)
    with pytest.raises(ImageError, match=rf"/{path} is too large: expected at most"):
        fetch(f"{server}/{path}", max_bytes=1999)


def test_a_server_that_is_not_there() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        port = gone.server_port
    with pytest.raises(ImageError, match=rf"cannot fetch http://127.0.0.1:{port}/a.png: Connection refused"):
        fetch(f"http://127.0.0.1:{port}/a.png")


def test_a_server_that_never_answers() -> None:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as silent,  # listens, and serves nobody
        pytest.raises(ImageError, match=r"did not come within 0.1 seconds"),
    ):
        fetch(f"http://127.0.0.1:{silent.server_port}/a.png", timeout=0.1)


@pytest.mark.parametrize("address", ["http://", "http://[", "http://127.0.0.1:99999/a.png", "http://a\x00b/"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ImageError, match="cannot fetch http://"):
        fetch(address, allow_http=True)


def test_one_bad_address_does_not_stop_the_others(server: str, tiny_onnx: Path, tmp_path: Path) -> None:
    given = find_sources([f"{server}/nothing.png", f"{server}/moved.png", "-"], stdin=io.BytesIO(content("JPEG")))
    with Predictor.load(tiny_onnx) as predictor:
        outcomes = list(predict_files(predictor, given.pictures, 0.0, tmp_path / "out", batch=2))
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]
    assert [outcome.to_dict()["file"] for outcome in outcomes] == [f"{server}/nothing.png", f"{server}/moved.png", "-"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"moved.png", "stdin.png", "predictions.json"}


def test_pages_of_an_address_are_not_known(server: str) -> None:
    with pytest.raises(ImageError, match=r"--all-frames is for files, and http"):
        find_sources([f"{server}/moved.png"], all_frames=True)
