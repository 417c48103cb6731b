"""The PyTorch session that a file must agree with, found from a checkpoint or from the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.inspection import inspect_onnx
from detr_export.loading import reference_of_file, reference_session
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError
from detr_export.verification.cases import Case, make_inputs
from tests.detr_export.recorder import Recorder

CASE = Case(64, 96, ((64, 96), (40, 96)))


def names(session: TorchSession) -> tuple[list[str], list[str]]:
    return [spec.name for spec in session.inputs], [spec.name for spec in session.outputs]


def test_the_session_of_a_checkpoint(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert names(reference_session(checkpoint)) == (["pixel_values", "pixel_mask"], ["logits", "pred_boxes"])
    given = reference_session(checkpoint, attentions=True, pixel_mask=False)
    assert names(given) == (["pixel_values"], ["logits", "pred_boxes", "cross_attention"])
    inputs = make_inputs(CASE, 3, True, seed=0)
    with reference_session(checkpoint) as one, TorchSession.open(tiny_checkpoint) as other:
        assert one.metadata == other.metadata
        for name, array in one.run(inputs).items():
            assert np.array_equal(array, other.run(inputs)[name]), name


def test_the_detector_of_a_segmentation_checkpoint(segmenter: Path) -> None:
    checkpoint = load_checkpoint(segmenter)
    assert "pred_masks" in names(reference_session(checkpoint))[1]
    detector = reference_session(checkpoint, task="detection")
    assert "pred_masks" not in names(detector)[1]
    assert detector.metadata is not None
    assert detector.metadata.task == "detection"


@pytest.mark.parametrize("opened", [False, True])
def test_the_reference_of_a_file(opened: bool, tiny_onnx: Path, tiny_checkpoint: Path) -> None:
    progress = Recorder()
    about = OrtSession(tiny_onnx) if opened else inspect_onnx(tiny_onnx)
    reference = reference_of_file(tiny_onnx, about, progress=progress)
    assert progress.lines == [f"reading {tiny_checkpoint}"]
    assert names(reference) == (["pixel_values", "pixel_mask"], ["logits", "pred_boxes"])


def test_the_reference_follows_inputs_and_outputs(segmenter_onnx: Path, segmenter: Path) -> None:
    about = inspect_onnx(segmenter_onnx)
    boxes_alone = replace(about, inputs=about.inputs[:1], outputs=about.outputs[:2], metadata=None)
    reference = reference_of_file("a.onnx", boxes_alone, segmenter)
    assert names(reference) == (["pixel_values"], ["logits", "pred_boxes"])
    with pytest.raises(ArtifactError, match=r"a\.onnx does not say which checkpoint it came from; add --checkpoint"):
        reference_of_file("a.onnx", boxes_alone)
