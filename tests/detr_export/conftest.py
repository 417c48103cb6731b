"""Exported files that several modules test."""

from __future__ import annotations

from pathlib import Path

import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, ExportResult, export_onnx


@pytest.fixture(scope="session")
def fp16_images(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The segmentation checkpoint as an fp16 file of opset 17 that takes uint8 images, verified; not to be changed."""
    options = ExportOptions(precision="fp16", fp16_io=True, input="uint8", opset=17)
    return export_onnx(load_checkpoint(segmenter), tmp_path_factory.mktemp("fp16") / "images.onnx", options)


@pytest.fixture(scope="session")
def tiny_onnx_17(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in the last opset that TensorRT 8.5 reads; not to be changed."""
    options = ExportOptions(opset=17, verify=False)
    return export_onnx(load_checkpoint(tiny_checkpoint), tmp_path_factory.mktemp("onnx17") / "tiny.onnx", options).path
