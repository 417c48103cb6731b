"""Model cards: what the hub reads in them, what people read, and that they appear with their file or not at all."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from detr_export.model_card import CardFile, Latency, base_model_of, model_card, require_card_place, size_rule, write_card
from detr_export.runtimes import Predictor
from detr_export.runtimes.cpu import cpu_name
from detr_export.runtimes.errors import ImageError, OutputError
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.metadata import EndToEnd, Metadata, Quantization
from detr_export.runtimes.opening import open_session

FILES = [CardFile("model.onnx", 2_500_000, "a" * 64), CardFile("model.masks.onnx", 500_000, "b" * 64)]
PARITY: dict[str, Any] = {
    "cases": 8,
    "max_abs_diff": {"logits": 2.7e-05, "pred_boxes": 3e-06},
    "noise_floor": {"logits": 4.3e-05},
    "tolerance": {"logits": 4.3e-04, "pred_boxes": 1e-4},
}


def metadata(**changes: Any) -> Metadata:
    about = Metadata(
        task="detection",
        id2label={0: "N/A", 1: "ship: large", 2: "N/A", 3: "sail"},
        processor={"size": {"shortest_edge": 800, "longest_edge": 1333}},
        pixel_mask=True,
        opset=18,
        source={"name": "someone/ships", "sha256": "c" * 64},
        parity=PARITY,
    )
    return replace(about, **changes)


def front_matter(text: str) -> dict[str, Any]:
    """As the hub's own library reads it."""
    return ModelCard(text).data.to_dict()


def test_the_hub_reads_the_front_matter() -> None:
    text = model_card(FILES[:1], metadata(), "someone/ships", None, None)
    assert front_matter(text) == {
        "library_name": "onnx",
        "pipeline_tag": "object-detection",
        "base_model": "someone/ships",
        "tags": ["onnx", "detr", "detr-export", "fp32"],
    }
    segmenter = front_matter(model_card(FILES, metadata(task="segmentation", precision="fp16"), None, None, None))
    assert segmenter["pipeline_tag"] == "image-segmentation"
    assert segmenter["tags"][-1] == "fp16"
    assert "base_model" not in segmenter


def test_people_read_what_was_measured() -> None:
    text = model_card(
        FILES, metadata(), "someone/ships", "on 9 images box AP 0.4 (+0.0) against the checkpoint", "model.png"
    )
    for part in (
        "# model\n",
        "objects of 3 classes",
        "[someone/ships](https://huggingface.co/someone/ships)",
        "![What the file finds in a picture](model.png)",
        f"| `model.onnx` | 2.5 MB | `{'a' * 64}` |",
        f"| `model.masks.onnx` | 0.5 MB | `{'b' * 64}` |",
        f"| the weights of the source | | `{'c' * 64}` |",
        "over 8 batches",
        "| `logits` | 2.7e-05 | 4.3e-05 | 4.3e-04 |",
        "| `pred_boxes` | 3.0e-06 | not measured | 1.0e-04 |",
        "Accuracy on 9 images box AP 0.4",
        "N/A, ship: large, sail.",
    ):
        assert part in text, part
    assert not [line for line in text.splitlines() if line.endswith(" ")]


def test_the_speed_names_the_machine() -> None:
    latency = Latency("640x480", 35.4, 33.1, 5, "A CPU (avx2), 2 cores")
    text = model_card(FILES, metadata(), None, None, None, latency)
    assert "took 35 ms from pixels to boxes (median of 5 runs;\nthe fastest 33 ms) in ONNX Runtime on A CPU (avx2)" in text
    assert "## Speed" not in model_card(FILES, metadata(), None, None, None)


def test_what_was_not_measured_is_said() -> None:
    assert "Not compared." in model_card(FILES, metadata(parity=None), None, None, None)
    quantization = Quantization("encoder", "percentile", 40, "fp32", float_parity=PARITY)
    text = model_card(FILES, metadata(precision="int8", parity=None, quantization=quantization), None, None, None)
    assert "The float graph before int8 was compared" in text
    assert "accuracy of the int8 file was not measured" in text
    assert "the encoder, calibrated on 40 pictures by percentile" in text


def test_a_path_of_this_machine_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ships").mkdir(parents=True)
    assert base_model_of(metadata()) == "someone/ships"
    for name in (str(tmp_path / "runs" / "ships"), "runs/ships", "demo", "model.pth"):
        local = metadata(source={"name": name, "sha256": "c" * 64})
        assert base_model_of(local) is None
        text = model_card(FILES, local, None, None, None)
        assert f"exported from `{Path(name).name}`" in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "shorter side has 800 pixels, or less where the longer one would have more than 1333"),
        ({"processor": {"size": {"shortest_edge": 800, "longest_edge": None}}}, "shorter side has 800 pixels"),
        ({"processor": {"size": {"longest_edge": 1000}}}, "longer side has 1000 pixels"),
        ({"processor": {"size": {"height": 5, "width": 6}}}, "5 pixels high and 6 wide"),
        ({"processor": {"size": {"max_height": 5, "max_width": 6}}}, "fits into 5 pixels of height and 6 of width"),
        ({"processor": {"size": {"height": 5, "width": 6}, "do_resize": False}}, "as they are"),
        ({"end_to_end": EndToEnd("rgb", "matmul", 10)}, "of any size"),
    ],
)
def test_the_size_rule_in_words(changes: dict[str, Any], words: str) -> None:
    assert words in size_rule(metadata(**changes))


def test_the_card_of_a_real_file(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.onnx"
    shutil.copyfile(tiny_onnx, file)
    with open_session(file) as session:
        about = session.metadata
    assert about is not None
    write_card(file, about, picture=photo)
    text = (tmp_path / "tiny.md").read_text(encoding="utf-8")
    assert sha256_of_file(file) in text
    assert about.source["sha256"] in text
    assert front_matter(text)["library_name"] == "onnx"
    assert re.search(r"One image of 640x480 pixels took \d+ ms .* \(median of 5 runs", text)
    assert cpu_name() in text
    with Image.open(photo) as original, Image.open(tmp_path / "tiny.png") as drawn, Predictor.load(file) as predictor:
        assert drawn.tobytes() == predictor.detect(photo).draw(photo).tobytes()
        assert drawn.size == original.size
    # The program on the card runs.
    program = text.split("```python\n")[1].split("```")[0]
    program = program.replace("tiny.onnx", str(file)).replace("picture.jpg", str(photo))
    exec(compile(program, "card", "exec"), {})


def test_a_place_that_is_taken_is_refused(photo: Path, tmp_path: Path) -> None:
    require_card_place(tmp_path / "a.onnx", False, photo)
    (tmp_path / "a.md").write_text("mine")
    with pytest.raises(OutputError, match=r"a\.md exists; add --overwrite"):
        require_card_place(tmp_path / "a.onnx", False, None)
    require_card_place(tmp_path / "a.onnx", True, photo)
    with pytest.raises(ImageError):
        require_card_place(tmp_path / "b.onnx", False, tmp_path / "a.md")
