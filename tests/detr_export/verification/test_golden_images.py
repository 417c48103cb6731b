"""Golden data of end-to-end files: an exported file answers them, a wrong one does not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.verification.golden import END_TO_END, Golden, GoldenCase
from detr_export.verification.golden.exports import write_export_golden
from detr_export.verification.golden.reading import read_golden
from tests import models

OPTIONS = ExportOptions(end_to_end=True, color="bgr", verify=False)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Golden]:
    """The tiny detector, taking BGR images, and its golden data."""
    folder = tmp_path_factory.mktemp("golden")
    checkpoint = load_checkpoint(tiny_checkpoint)
    result = export_onnx(checkpoint, folder / "model.onnx", OPTIONS)
    written = write_export_golden(folder / "golden", "model.onnx", checkpoint, OPTIONS, result.metadata, None)
    assert written.cases == 7
    return result.path, read_golden(folder / "golden")


def _unmatched(found: dict[str, np.ndarray], case: GoldenCase, tolerances: dict[str, float], threshold: float) -> int:
    """Detections above a threshold on one side that have no like on the other; each side is looked at once."""

    def near(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], image: int) -> int:
        missing = 0
        for row in np.flatnonzero(ours["scores"][image] > threshold):
            like = (
                (theirs["labels"][image] == ours["labels"][image][row])
                & (np.abs(theirs["scores"][image] - ours["scores"][image][row]) <= tolerances["scores"])
                & (np.abs(theirs["boxes"][image] - ours["boxes"][image][row]).max(axis=-1) <= tolerances["boxes"])
            )
            missing += not like.any()
        return missing

    expected = dict(case.outputs)
    return sum(
        near(*sides, image) for image in range(len(found["scores"])) for sides in ((found, expected), (expected, found))
    )


def test_the_file_answers_as_the_checkpoint(exported: tuple[Path, Golden]) -> None:
    file, golden = exported
    assert (golden.kind, golden.model) == (END_TO_END, "model.onnx")
    assert set(golden.tolerances) == {"scores", "boxes"}
    compared = wrong = 0
    with OrtSession(file) as session:
        for case in golden.cases:
            assert case.outputs["boxes"].shape == (len(case.inputs["image"]), models.config().num_queries, 4)
            assert _unmatched(session.run(case.inputs), case, dict(golden.tolerances), 0.5) == 0
            compared += int((case.outputs["scores"] > 0.5).sum())
            swapped = np.ascontiguousarray(case.inputs["image"][..., ::-1])
            wrong += _unmatched(session.run({"image": swapped}), case, dict(golden.tolerances), 0.5)
    assert compared >= 10
    assert wrong >= 5  # red and blue changed places


def test_the_images_are_the_same_everywhere(exported: tuple[Path, Golden]) -> None:
    digest = hashlib.sha256()
    for case in exported[1].cases:
        digest.update(case.inputs["image"].tobytes())
    assert digest.hexdigest() == "5d620a6dd1f51da5b7f668682824071a21cfc8d03a9082fbe6920165a6339c60"


def test_fp16_limits_are_wider(exported: tuple[Path, Golden], tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    with OrtSession(exported[0]) as session:
        assert session.metadata is not None
        about = replace(session.metadata, precision="fp16")
    write_export_golden(tmp_path / "golden", "half.onnx", checkpoint, OPTIONS, about, None)
    wider = read_golden(tmp_path / "golden").tolerances
    assert wider["scores"] >= 0.02
    assert wider["boxes"] > exported[1].tolerances["boxes"]
