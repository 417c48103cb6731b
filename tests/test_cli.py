"""The command line as a user meets it: in a process of its own, by its output and exit code."""

from __future__ import annotations

import atexit
import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes.processing.images import load_image
from detr_export.verification.cases import GRID
from tests import models
from tests.warm import WarmCommands

ROOT = Path(__file__).parent.parent
# A shell that starts tests in the background makes them deaf to Ctrl-C; the command is to hear it all the same.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from detr_export import cli; cli.main()"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def run(
    *arguments: str | Path, before: str = "", stdin: IO[bytes] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command; `before` is Python that runs first. No traceback may ever show."""
    done = subprocess.run(
        [sys.executable, "-c", before + "\n" + START, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=stdin,
        env={**ENVIRONMENT, **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@functools.cache
def warm() -> WarmCommands:
    """For commands that fail early."""
    commands = WarmCommands("detr_export.cli", ENVIRONMENT)
    atexit.register(commands.close)
    return commands


def fails(*arguments: str | Path, before: str = "") -> str:
    """Runs a command that must fail with exit code 1 and one line about it, and returns the line."""
    done = run(*arguments, before=before) if before else warm().run([*map(str, arguments)])
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]  # progress is indented
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    return errors[0]


def succeeds(*arguments: str | Path) -> str:
    """Runs a command that must end well, and returns what it printed on stdout."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- help and usage -----------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, "detr-export 0.1.0\n")


@pytest.mark.parametrize("command", [(), ("onnx",), ("verify",), ("inspect",), ("predict",)])
def test_help(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("detr-export in", {"inspect"}),
        ("detr-export tr", {"train", "triton", "trt"}),
        ("detr-export onnx --pre", {"--precision"}),
        ("detr-export onnx --precision ", {"fp32", "fp16", "int8"}),
        ("detr-export trt --fal", {"--fallback"}),
    ],
)
def test_the_shell_completes(typed: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_DETR_EXPORT_COMPLETE": "complete_bash"}
    done = run(**words)
    assert set(done.stdout.split()) == offered, done.stderr


def test_the_console_script_and_the_module() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "detr_export", "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert module.stdout == "detr-export 0.1.0\n"
    script = Path(sys.executable).with_name("detr-export")
    if script.exists():
        done = subprocess.run([script, "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
        assert done.stdout == module.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "No such command 'nope'"),
        (("onnx", "a", "b", "c"), "unexpected extra argument"),
        (("onnx", "a", "--opset", "16"), "Invalid value for '--opset'"),
        (("onnx", "a", "--opset", "x"), "Invalid value for '--opset'"),
        (("onnx", "a", "--card-picture", "b.jpg"), "--card-picture goes with --model-card"),
        (("onnx", "a", "--nope"), "No such option: --nope"),
        (("onnx", "a", "b"), "unexpected extra argument"),
        (("verify",), "Missing argument"),
        (("verify", "a", "--atol", "1"), "go with --against OTHER"),
        (("verify", "a", "--images", "b"), "go with --against OTHER"),
        (("verify", "a", "--inputs", "b"), "go with --against OTHER"),
        (("verify", "a", "--device", "cpu"), "--device goes with an engine or with --against OTHER"),
        (("verify", "a", "--against-device", "cpu"), "go with --against OTHER"),
        (("verify", "a", "--against", "b", "--checkpoint", "c"), "--checkpoint and --dilation do not go with --against"),
        (("verify", "a", "--against", "b", "--no-dilation"), "--checkpoint and --dilation do not go with --against"),
        (("verify", "a", "--against", "b", "--inputs", "c", "--images", "d"), "--inputs and --images do not go together"),
        (("evaluate", "a", "--images", "b"), "Missing option '--annotations'"),
        (("demo-data", "a"), "Missing option '--images'"),
        (("demo-data", "a", "--images", "1", "--kind", "coin"), "Invalid value for '--kind'"),
        (("evaluate", "a", "--images", "b", "--annotations", "c", "--overwrite"), "--overwrite goes with --plots DIR"),
        (("demo-data", "a", "--images", "0"), "Invalid value for '--images'"),
        (("train", "--data", "a"), "Missing option '--output'"),
        (("train", "--data", "a", "-o", "b", "--task", "c"), "Invalid value for '--task'"),
        (("train", "--data", "a", "-o", "b", "--scale", "1"), "Option '--scale' requires 2 arguments"),
        (("predict", "a"), "Missing argument"),
        (("predict", "a", "b", "--threshold", "1.5"), "Invalid value for '--threshold'"),
        (("predict", "a", "b", "--threshold", "nan"), "Invalid value for '--threshold'"),
        (("predict", "a", "b", "--threads", "0"), "Invalid value for '--threads'"),
        (("predict", "a", "b", "--batch", "0"), "Invalid value for '--batch'"),
        (("predict", "a", "b", "--format", "csv"), "go with --output DIR"),
        (("predict", "a", "b", "--format", "xml", "-o", "c"), "Invalid value for '--format'"),
        (("predict", "a", "b", "--annotations", "c", "-o", "d"), "--annotations goes with --format coco"),
        (("predict", "a", "b", "--format", "coco", "-o", "c", "--task", "panoptic"), "leave format"),
        (("predict", "a", "b", "--line-width", "2"), "go with --output DIR"),
        (("predict", "a", "b", "--font-size", "9"), "go with --output DIR"),
        (("predict", "a", "b", "--hide-labels"), "go with --output DIR"),
        (("predict", "a", "b", "--line-width", "0", "-o", "c"), "Invalid value for '--line-width'"),
        (("predict", "a", "b", "--line-width", "2", "-o", "c", "--task", "panoptic"), "leave line_width"),
        (("predict", "a", "b", "--hide-labels", "-o", "c", "--explain"), "labels are fixed"),
        (("predict", "a", "b", "--classes", "cat", "--task", "semantic"), "leave classes"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr


# ---- onnx, verify, inspect ----------------------------------------------------------------------------------------------


def test_onnx(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    done = run("onnx", tiny_checkpoint, "-o", file, "--no-simplify")
    assert done.returncode == 0, done.stderr
    first, second, *outputs = done.stdout.splitlines()
    assert first.startswith(f"{file}  ")
    assert first.endswith("MB, detection, fp32, opset 18")
    assert second == f"verified over {len(GRID)} batches against the float64 model"
    assert [line.split()[0] for line in outputs] == ["logits", "pred_boxes"]
    assert all("x the noise floor of" in line for line in outputs)
    assert done.stderr.splitlines()[:2] == [f"  reading {tiny_checkpoint}", "  tracing"]
    assert names(tmp_path) == ["a.onnx"]


def test_onnx_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = run("onnx", tiny_checkpoint, "-o", tmp_path / "a.onnx", "--json", "--no-verify", "--no-simplify", "--no-mask")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == str(tmp_path / "a.onnx")
    assert document["metadata"]["opset"] == 18
    assert document["metadata"]["pixel_mask"] is False
    assert document["metadata"]["parity"] is None


def test_onnx_with_a_model_card(tiny_checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    command = ("onnx", tiny_checkpoint, "-o", file, "--no-simplify", "--no-verify", "--model-card", "--card-picture")
    done = run(*command, photo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"model card: {tmp_path / 'a.md'}"
    assert names(tmp_path) == ["a.md", "a.onnx", "a.png"]


def test_accuracy_of_an_original_dc5_checkpoint(tmp_path: Path) -> None:
    """What is scored beside the file is the checkpoint that was loaded, with its options."""
    from detr_export.training.demo_data import write_demo_data
    from tests.detr_export.checkpoints.test_original import save, small

    data = write_demo_data(tmp_path / "data", 1, "val")
    checkpoint = save(tmp_path / "dc5.pth", small(dilation=True))
    options = ("--dilation", "--no-simplify", "--no-verify", "--json")
    done = run("onnx", checkpoint, "-o", tmp_path / "a.onnx", "--accuracy", data, "--max-ap-drop", "1", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["accuracy"]["reference"]["model"] == str(checkpoint)
    assert "  scoring" in done.stderr.splitlines()


def test_verify(tiny_onnx: Path, tiny_checkpoint: Path) -> None:
    done = run("verify", tiny_onnx, "--checkpoint", tiny_checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


def test_verify_with_the_checkpoint_that_the_file_names(tiny_onnx: Path, tmp_path: Path) -> None:
    import onnx

    done = run("verify", tiny_onnx)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified over 8 batches")
    model = onnx.load(tiny_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    done = run("verify", tmp_path / "bare.onnx")
    assert done.returncode == 1
    assert done.stderr.endswith("does not say which checkpoint it came from; add --checkpoint CHECKPOINT\n")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """One small image for the tiny file."""
    pixels = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
    np.savez(tmp_path / "in.npz", pixel_values=pixels, pixel_mask=np.ones((1, 64, 96), np.int64))
    return tmp_path / "in.npz"


def test_verify_against_another_model(tiny_onnx: Path, tiny_checkpoint: Path, arrays: Path) -> None:
    command = ("verify", tiny_onnx, "--against", tiny_checkpoint, "--inputs", arrays)
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "compared",
        "logits",
        "in.npz",
        "pred_boxes",
        "in.npz",
        "not",
    ]
    assert done.stderr == "  comparing 1/1 in.npz\n"

    document = json.loads(succeeds(*command, "--atol", "1e-3", "--atol", "pred_boxes=1e-4", "--json"))
    assert document["passed"] is True
    assert document["limits"] == {"logits": 1e-3, "pred_boxes": 1e-4}
    assert 0 < document["outputs"]["logits"]["max_abs_diff"] < 1e-3

    done = run(*command, "--atol", "logits=1e-12")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED: logits differs by ")
    message = f"error: {tiny_onnx} disagrees with {tiny_checkpoint}: logits differs by "
    assert done.stderr.splitlines()[-1].startswith(message)


def test_verify_against_a_file_on_the_hub(tiny_onnx: Path, arrays: Path, tmp_path: Path) -> None:
    models.publish(tmp_path / "hub", "someone/tiny", tiny_onnx, "onnx/model.onnx", revision="v2")
    command = ("verify", tiny_onnx, "--against", "someone/tiny/onnx/model.onnx", "--inputs", arrays, "--atol", "0")
    done = run(*command, "--revision", "v2", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert "passed: logits within 0, pred_boxes within 0" in done.stdout
    done = run(*command, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 1
    assert "someone/tiny/onnx/model.onnx is neither an existing path nor in the hub's cache" in done.stderr


def test_inspect(tiny_onnx: Path) -> None:
    done = run("inspect", tiny_onnx)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{tiny_onnx}  ")
    assert done.stderr == ""
    assert json.loads(run("inspect", tiny_onnx, "--json").stdout)["opset"] == 18


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("onnx", "{tmp}/nothing"), "neither an existing path nor a hub id"),
        (("onnx", "{tmp}/empty"), "config.json does not exist"),
        (("onnx", "{tmp}/text.pth"), "is truncated or not a PyTorch file"),
        (("onnx", "someone/nothing"), "is neither an existing path nor in the hub's cache"),
        (("onnx", "{tmp}/a.onnx"), "is an exported file"),
        (("onnx", "{tiny}", "--dilation"), "--dilation goes with an original .pth file"),
        (("onnx", "{tiny}", "--revision", "main"), "--revision goes with a hub id"),
        (("onnx", "{tiny}", "-o", "{tmp}/text.pth/below/a.onnx"), "is not a folder that this user may write to"),
        (("onnx", "{tiny}", "-o", "{tmp}/a.onnx"), "a.onnx exists; add --overwrite to replace it"),
        (("onnx", "{tiny}", "-o", "{tmp}/a.bin"), "does not end in .onnx"),
        (("onnx", "{tiny}", "-o", "{tmp}/" + "a" * 300 + ".onnx"), "File name too long"),
        (("verify", "{tmp}/nothing.onnx", "--checkpoint", "{tiny}"), "nothing.onnx does not exist"),
        (("verify", "{tmp}/a.onnx", "--checkpoint", "{tiny}"), "a.onnx cannot be loaded by ONNX Runtime"),
        (("verify", "{onnx}", "--checkpoint", "{tmp}/empty"), "config.json does not exist"),
        (("verify", "{tmp}/nothing.onnx", "--against", "{tiny}"), "nothing.onnx does not exist"),
        (("verify", "{onnx}", "--against", "{tmp}/text.txt"), "text.txt is neither an .onnx file nor a checkpoint"),
        (("verify", "{onnx}", "--against", "{onnx}", "--inputs", "{tmp}/text.txt"), "text.txt is not an .npz file"),
        (("verify", "{onnx}", "--against", "{onnx}", "--images", "{tmp}/empty"), "contains no images"),
        (("verify", "{onnx}", "--against", "{onnx}", "--atol", "x"), "limit is 'x'; expected VALUE or NAME=VALUE"),
        (("verify", "{onnx}", "--against", "{onnx}", "--atol", "masks=1"), "there is a limit of masks; expected one of"),
        (("verify", "{onnx}", "--against", "{onnx}", "--revision", "v2"), "--revision goes with a file on the hub"),
        (("verify", "{onnx}", "--against", "{onnx}", "--device", "tpu"), "device is 'tpu'; expected cpu"),
        (("inspect", "{tmp}/nothing.onnx"), "does not exist or is not a file"),
        (("inspect", "{tmp}/a.onnx"), "is not an ONNX model"),
        (("inspect", "{tiny}"), "is not a regular file: it is a folder"),
        (("predict", "{tmp}/a.onnx", "{photo}"), "a.onnx cannot be loaded by ONNX Runtime"),
        (("predict", "{tmp}/text.pth", "{photo}"), "is truncated or not a PyTorch file"),
        (("predict", "{tmp}/text.txt", "{photo}"), "is neither an .onnx file nor a checkpoint"),
        (("predict", "~nobody-of-this-name/x", "{photo}"), "neither an existing path nor a hub id"),
        (("predict", "a" * 5000, "{photo}"), "neither an existing path nor a hub id"),
        (
            ("predict", "{onnx}", "{photo}", "--device", "tpu"),
            "device is 'tpu'; expected cpu, cuda[:N], tensorrt[:N], tensorrt-rtx[:N] or openvino",
        ),
        (("predict", "{onnx}", "{photo}", "--cache", "{tmp}"), "which does not take cache: only OpenVINO compiles"),
        (("predict", "{onnx}", "{photo}", "--max-padding", "0.1"), "batch (--batch) is 1; give a larger one"),
        (("predict", "{tiny}", "{photo}", "--device", "cpu:"), "device is 'cpu:'; expected"),
        (("predict", "{onnx}", "{tmp}/nothing.jpg"), "nothing.jpg does not exist: expected an image file"),
        (("predict", "{onnx}", "{tmp}/empty"), "contains no images"),
        (("predict", "{onnx}", "{tmp}/*.jpg"), "matches no file"),
        (("predict", "{onnx}", "{photo}", "-o", "{tmp}/text.txt"), "is not a folder that this user may write to"),
    ],
)
def test_errors(
    command: tuple[str, ...], message: str, tiny_checkpoint: Path, tiny_onnx: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("text.pth", "text.txt", "a.onnx"):
        (tmp_path / name).write_text("hello")
    before = names(tmp_path)
    places = {"tmp": tmp_path, "tiny": tiny_checkpoint, "onnx": tiny_onnx, "photo": photo}
    assert message in fails(*(part.format(**places) for part in command))
    assert names(tmp_path) == before
    assert (tmp_path / "a.onnx").read_text() == "hello"


# ---- predict ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(photo: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(photo, folder / "a.jpg")
    Image.open(photo).crop((0, 0, 200, 300)).save(folder / "c.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_files_folders_and_globs(tiny_onnx: Path, images: Path, photo: Path) -> None:
    done = run("predict", tiny_onnx, photo, images, f"{images}/*.png", "--threshold", "0")
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [
        str(photo),
        f"{images}/a.jpg",
        f"{images}/c.png",
    ]
    for line in done.stdout.splitlines():
        assert sum(int(part.split()[0]) for part in line.partition(": ")[2].split(", ")) == 9
    assert done.stderr == "note: skipped 1 file that Pillow does not read: 1 .txt\n"


def test_predict_json_and_pictures(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("predict", tiny_onnx, images, "--threshold", "0", "--json", "-o", out, "--threads", "1")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [len(entry["detections"]) for entry in document] == [9, 9]
    assert json.loads((out / "predictions.json").read_text()) == document
    assert names(out) == ["a.png", "c.png", "predictions.json"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "exists; add --overwrite to replace it" in fails("predict", tiny_onnx, images, "-o", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run("predict", tiny_onnx, images, "-o", out, "--overwrite", "--threshold", "1").returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} != before


def test_predict_walks_folders_and_takes_pages_and_stdin(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    for name in ("a.tiff", "sub/a.gif"):
        frames[0].save(tmp_path / "images" / name, save_all=True, append_images=frames[1:])
    arguments = ("predict", tiny_onnx, tmp_path / "images", "-", "--json", "--threshold", "0", "-o", tmp_path / "out")
    with photo.open("rb") as stdin:
        done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert [item["file"] for item in json.loads(done.stdout)] == ["a.tiff", "sub/a.gif", "-"]
    assert done.stderr.startswith("note: 2 files have more pages or frames than the first one; add --all-frames")
    assert len(done.stderr.splitlines()) == 1
    with photo.open("rb") as stdin:
        done = run(*arguments, "--all-frames", "--overwrite", stdin=stdin)
    assert [item["file"] for item in json.loads(done.stdout)] == ["a.tiff#1", "a.tiff#2", "sub/a.gif#1", "sub/a.gif#2", "-"]
    assert done.stderr == ""
    assert (tmp_path / "out" / "sub" / "a.page2.png").is_file()


def test_predict_writes_some_classes_as_a_table(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    arguments = ("predict", tiny_onnx, images, "--threshold", "0", "-o", tmp_path / "out", "--format", "csv")
    everything = json.loads(run("predict", tiny_onnx, images, "--threshold", "0", "--json").stdout)
    found = [(item["file"], entry["name"]) for item in everything for entry in item["detections"]]
    wanted = {"person", "cat"}
    assert wanted & {name for _, name in found} not in (set(), {name for _, name in found})
    done = run(*arguments, "--classes", "person,cat", "--line-width", "2", "--hide-labels")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = [(row["file"], row["class"]) for row in csv.DictReader(file)]
    assert rows == [pair for pair in found if pair[1] in wanted]
    refused = fails(*arguments, "--overwrite", "--classes", "person", "--classes", "dragon")
    assert refused.startswith("error: the model has no class 'dragon'")


def test_predict_in_batches_and_with_a_cache(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    arguments = ("predict", tiny_onnx, images, "--threshold", "0", "--json", "--device", "openvino")
    alone = json.loads(run(*arguments).stdout)
    for _ in range(2):
        done = run(*arguments, "--batch", "2", "--cache", tmp_path / "cache")
        together = json.loads(done.stdout)
        assert [item["image"] for item in together] == [item["image"] for item in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.keys() == other.keys()
            found, expected = ([entry["score"] for entry in item.get("detections", [])] for item in (one, other))
            np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_predict_with_a_checkpoint(tiny_checkpoint: Path, tiny_onnx: Path, photo: Path) -> None:
    arguments = (photo, "--threshold", "0", "--json")
    by_torch, by_onnx = (json.loads(run("predict", model, *arguments).stdout) for model in (tiny_checkpoint, tiny_onnx))
    for given, wanted in zip(by_torch[0]["detections"], by_onnx[0]["detections"], strict=True):
        assert given["label"] == wanted["label"]
        assert given["box"] == pytest.approx(wanted["box"], abs=0.1)


def test_predict_goes_on_after_a_bad_image(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    (images / "b.jpg").write_bytes(b"hello")
    done = run("predict", tiny_onnx, images, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert [Path(line.partition(": ")[0]).name for line in done.stdout.splitlines()] == ["a.jpg", "c.png"]
    line, _ = done.stderr.splitlines()
    assert line.startswith(f"error: {images / 'b.jpg'} is not an image that Pillow reads")
    assert names(tmp_path / "out") == ["a.png", "c.png", "predictions.json"]
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert ["error" in entry for entry in document] == [False, True, False]
    as_json = run("predict", tiny_onnx, images, "--json")
    assert as_json.returncode == 1
    assert ["error" in entry for entry in json.loads(as_json.stdout)] == [False, True, False]


def test_predict_on_images_of_every_kind(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    image, folder = Image.open(photo), tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("1").save(folder / "bits.png")
    Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)).save(folder / "deep.png")
    image.resize((1, 1)).save(folder / "dot.png")
    image.resize((1, 100)).save(folder / "line.png")
    done = run("predict", tiny_onnx, folder, "--threshold", "0", "--json", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    sizes = {Path(entry["image"]).stem: entry["image_size"] for entry in json.loads(done.stdout)}
    assert sizes == {
        "turned": [640, 427],
        "cmyk": [427, 640],
        "palette": [427, 640],
        "alpha": [427, 640],
        "bits": [427, 640],
        "deep": [60, 80],
        "dot": [1, 1],
        "line": [100, 1],
    }
    for name, size in sizes.items():
        assert load_image(tmp_path / "out" / f"{name}.png").size == tuple(size[::-1])


def test_predict_on_bad_images(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1-empty.jpg").write_bytes(b"")
    (folder / "2-truncated.jpg").write_bytes(photo.read_bytes()[:5000])
    (folder / "3-text.jpg").write_text("hello")
    Image.new("1", (10_000, 9_500)).save(folder / "4-bomb.png")
    Image.new("F", (5, 5)).save(folder / "5-floats.tiff")
    Image.new("RGB", (1, 5000)).save(folder / "6-line.png")
    Image.new("RGB", (5000, 1)).save(folder / "7-flat.png")
    done = run("predict", tiny_onnx, folder)
    assert done.returncode == 1
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, name, message in zip(
        errors,
        names(folder),
        (
            "is empty",
            "is damaged or truncated",
            "is not an image",
            "is too large",
            "has floating-point pixels",
            "image of 1x5000 pixels is too thin",
            "image of 5000x1 pixels is too thin",
        ),
        strict=True,
    ):
        assert name in line
        assert message in line


def test_names_that_are_no_text(tiny_onnx: Path, images: Path) -> None:
    os.rename(os.fsencode(images / "a.jpg"), os.fsencode(images) + b"/b\xff\xfc.jpg")
    (images / "c.png").rename(images / "Käse.png")
    done = run("predict", tiny_onnx, images, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    (images / "two\nlines.jpg").write_bytes(b"")
    done = run("predict", tiny_onnx, images)
    assert done.returncode == 1
    error, _ = done.stderr.splitlines()
    assert error.startswith("error: ")


# ---- extras and interruption --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("torch", ("onnx", "{tiny}"), "export"),
        ("torch", ("predict", "{tiny}", "{photo}"), "export"),
        ("safetensors", ("predict", "{tiny}", "{photo}"), "export"),
        ("onnxscript", ("onnx", "{tiny}"), "export"),
        ("onnxsim", ("onnx", "{tiny}"), "export"),
        ("onnxruntime", ("predict", "{onnx}", "{photo}"), "cpu"),
        ("onnxruntime", ("onnx", "{tiny}"), "cpu"),
        ("pyarrow", ("predict", "{onnx}", "{photo}", "--format", "parquet", "-o", "{tmp}/out"), "parquet"),
        ("huggingface_hub", ("onnx", "someone/something"), "hub"),
        ("huggingface_hub", ("predict", "someone/something/model.onnx", "{photo}"), "hub"),
    ],
)
def test_a_missing_extra_names_its_install(
    package: str,
    arguments: tuple[str, ...],
    extra: str,
    tiny_checkpoint: Path,
    tiny_onnx: Path,
    photo: Path,
    tmp_path: Path,
) -> None:
    places = {"tiny": tiny_checkpoint, "onnx": tiny_onnx, "photo": photo, "tmp": tmp_path}
    command = [part.format(**places) for part in arguments]
    if command[0] == "onnx":
        command += ["-o", str(tmp_path / "a.onnx")]
    line = fails(*command, before=f"import sys; sys.modules['{package}'] = None")
    assert f"{package} is not installed; run: pip install 'detr-export[{extra}]'" in line
    assert names(tmp_path) == []


EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxsim", "safetensors", "huggingface_hub", "transformers", "scipy")


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "{onnx}", "{photo}"),
        ("inspect", "{onnx}"),
        ("doctor",),
        ("verify", "{onnx}", "--against", "{onnx}"),
        ("verify", "{onnx}", "--against", "{onnx}", "--images", "{photo}"),
    ],
)
def test_what_a_deployed_box_needs(command: tuple[str, ...], tiny_onnx: Path, photo: Path) -> None:
    """ONNX Runtime alone: nothing of the extra `export`."""
    arguments = [part.format(onnx=tiny_onnx, photo=photo) for part in command]
    done = run(*arguments, before=f"import sys; sys.modules.update(dict.fromkeys({EXPORT_PACKAGES!r}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_inspecting_without_onnx(tiny_onnx: Path, tmp_path: Path) -> None:
    block = "import sys; sys.modules['onnx'] = None; "
    shown = json.loads(run("inspect", tiny_onnx, "--json", before=block).stdout)
    expected = json.loads(run("inspect", tiny_onnx, "--json").stdout)
    for name in ("sha256", "size_bytes", "opset", "inputs", "outputs", "metadata"):
        assert shown[name] == expected[name]
    assert shown["operators"] is None
    line = fails("inspect", tiny_onnx, before=block + "sys.modules['onnxruntime'] = None")
    assert "onnxruntime is not installed; run: pip install 'detr-export[cpu]'" in line


@pytest.mark.parametrize("moment", ["reading", "tracing", "verifying 2/"])
def test_interrupting_an_export(moment: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", START, "onnx", str(tiny_checkpoint), "-o", str(file), "--overwrite", "--no-simplify"],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130, rest
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert names(tmp_path) == ["a.onnx"]
    assert file.read_bytes() == b"old"


def test_interrupting_a_prediction(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index in range(400):
        os.link(photo, images / f"{index:03}.jpg") if photo.stat().st_dev == images.stat().st_dev else shutil.copy(
            photo, images / f"{index:03}.jpg"
        )
    process = subprocess.Popen(
        [sys.executable, "-c", START, "predict", str(tiny_onnx), str(images), "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )
    while process.poll() is None and not [*out.glob("0*.png")]:  # many pictures get no line each
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130, errors
    assert (printed, errors) == ("", "interrupted\n")
    for path in out.iterdir():  # whole pictures alone: no temporary file, and no document
        assert path.suffix == ".png"
        assert not path.name.startswith(".")
        load_image(path)


def test_a_reader_that_leaves(tiny_onnx: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.3)\n{START}", "inspect", str(tiny_onnx)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_segmentation_from_checkpoint_to_pictures(tmp_path: Path, photo: Path) -> None:
    from detr_export.modeling.segmentation import DetrForSegmentation
    from detr_export.runtimes import DetrImageProcessor
    from detr_export.seeding import seed_weights
    from tests import models

    model = DetrForSegmentation(models.config(encoder_attention_heads=8, decoder_attention_heads=8))
    seed_weights(model)
    checkpoint = model.save_pretrained(tmp_path / "checkpoint", DetrImageProcessor(size=models.SIZE))
    file = tmp_path / "model.onnx"
    printed = succeeds("onnx", str(checkpoint), "-o", str(file), "--with-attentions")
    assert "segmentation" in printed
    assert "pred_masks" in printed
    for task in ("panoptic", "instances", "semantic"):
        output = tmp_path / task
        succeeds("predict", str(file), str(photo), "--task", task, "--threshold", "0.2", "-o", str(output))
        (document,) = json.loads((output / "predictions.json").read_text())
        assert document["kind"] == task
        assert document["segments"]
        assert (output / "china.png").is_file()
    succeeds("predict", str(file), str(photo), "--explain", "--threshold", "0.2", "-o", str(tmp_path / "explained"))
    assert (tmp_path / "explained" / "china.png").is_file()
    assert run("predict", str(file), str(photo), "--task", "stuff").returncode == 2
    assert run("predict", str(file), str(photo), "--task", "panoptic", "--explain").returncode == 2
    assert run("onnx", str(checkpoint), "--task", "panoptic").returncode == 2


def test_what_detectors_cannot_do(tiny_onnx: Path, photo: Path) -> None:
    assert "the model draws no masks" in fails("predict", str(tiny_onnx), str(photo), "--task", "panoptic")
    assert "does not return its attention" in fails("predict", str(tiny_onnx), str(photo), "--explain")
    assert "has no class 'table row'" in fails("predict", str(tiny_onnx), str(photo), "--task", "tables")
