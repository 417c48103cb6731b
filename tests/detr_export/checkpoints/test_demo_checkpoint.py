"""The checkpoints that come along; and `demo` is what its record says, in PyTorch and as an exported file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.checkpoints.reading import PACKAGED, load_checkpoint
from detr_export.graphs.export import export_onnx
from detr_export.graphs.options import ExportOptions
from detr_export.loading import reference_session
from detr_export.runtimes import Predictor
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.mask_head import with_mask_head
from detr_export.training import demo_data
from detr_export.verification.cases import GRID
from detr_export.verification.comparison import compare, require
from detr_export.verification.reference import reference_of

IMAGES = 100


@pytest.mark.parametrize(("name", "most_bytes"), [("demo", 10e6), ("demo-tables", 4e6)])
def test_it_is_small_and_half_precision(name: str, most_bytes: float) -> None:
    assert sum(file.stat().st_size for file in PACKAGED[name].iterdir()) <= most_bytes
    stored = load_file(PACKAGED[name] / "model.safetensors")
    assert all(value.dtype == (torch.float16 if value.dim() > 1 else torch.float32) for value in stored.values())
    checkpoint = load_checkpoint(name)
    assert all(value.dtype == torch.float32 for value in checkpoint.state_dict.values())
    assert checkpoint.source == name


def test_it_segments_shapes() -> None:
    checkpoint = load_checkpoint("demo")
    assert checkpoint.task == "segmentation"
    assert checkpoint.config.id2label == {0: "N/A", **demo_data.THINGS, **demo_data.STUFF}


def test_the_name_is_taken_whatever_lies_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_checkpoint("demo").task == "segmentation"
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_checkpoint("./demo")
    with pytest.raises(CheckpointError, match="demo comes with the package; leave the other options out"):
        load_checkpoint("demo", revision="main")


@pytest.mark.parametrize(
    ("name", "kind"), [("demo", "DetrForSegmentation"), ("demo-tables", "TableTransformerForObjectDetection")]
)
def test_transformers_reads_it(name: str, kind: str) -> None:
    import transformers

    model = getattr(transformers, kind).from_pretrained(PACKAGED[name]).eval()
    ours = load_checkpoint(name).state_dict
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, ours[key]), key


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_data.write_demo_data(tmp_path_factory.mktemp("shapes"), IMAGES, "val")


def test_it_reaches_its_recorded_scores_as_a_checkpoint_and_as_a_file(shapes: Path, tmp_path: Path) -> None:
    recorded = json.loads((PACKAGED["demo"] / "scores.json").read_text())[f"first {IMAGES} images"]
    file = export_onnx(load_checkpoint("demo"), tmp_path / "demo.onnx", ExportOptions(verify=False)).path
    annotations = shapes / "annotations"
    found = evaluate(
        file,
        shapes / "val",
        annotations / "instances_val.json",
        (annotations / "panoptic_val.json", annotations / "panoptic_val"),
        against="demo",
    )
    assert found.images == IMAGES
    assert found.reference is not None
    for kind, metrics in recorded.items():
        for name, value in metrics.items():
            theirs = found.reference.metrics()[kind][name]
            ours = found.accuracy.metrics()[kind][name]
            assert theirs is not None
            assert ours is not None
            assert abs(theirs - value) <= 0.01, (kind, name)
            assert abs(ours - theirs) <= 0.001, (kind, name)


@pytest.mark.parametrize("input_", ["float", "uint8"])
def test_its_simplified_files_pass_the_gate(input_: str, tmp_path: Path) -> None:
    """On every CPU: its masks reach 107, so a fixed tolerance would depend on how the processor rounds."""
    checkpoint = load_checkpoint("demo")
    file = export_onnx(checkpoint, tmp_path / "demo.onnx", ExportOptions(input=input_, verify=False)).path
    open_file = partial(OrtSession, spinning=False)
    with with_mask_head(file, open_file(file), open_file) as session:
        small = [case for case in GRID if case.height * case.width * len(case.valid) < 110_000]
        parity = compare(session, reference_of(reference_session(checkpoint)), small)
    require(parity, "the file")
    assert not parity.weak
    assert set(parity.ratio) == {"logits", "pred_boxes", "pred_masks"}
    assert parity.spread["pred_masks"] > 1000 * parity.tolerance["pred_masks"]


def test_it_finds_what_is_there(shapes: Path) -> None:
    """The first pictures, segment by segment: most under their names and nearly where they are."""
    right = wrong = 0
    with Predictor.load("demo") as predictor:
        for index in range(12):
            picture = demo_data.draw_picture("val", index)
            found = predictor.segment_panoptic(picture.pixels, threshold=0.85)
            masks = {segment: found.mask(segment) for segment in found.segments}
            for id_, label in picture.categories.items():
                mask = picture.ids == id_
                best = max((s for s in masks if s.label == label), key=lambda s: (masks[s] & mask).sum(), default=None)
                if best is not None and (masks[best] & mask).sum() > 0.6 * (masks[best] | mask).sum():
                    right += 1
                else:
                    wrong += 1
    assert right > 6 * wrong  # 59 of 65
