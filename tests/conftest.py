"""Shared fixtures, and the stand-in that lets the oracle (transformers, timm) import without torchvision's C++ library.

There is no CPU wheel of torchvision for every torch that this project is tested with, and importing the CUDA wheel
beside a CPU torch fails because its C++ operators were never registered. None of them is called here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.oracle import make_torchvision_importable

make_torchvision_importable()

from detr_export.checkpoint import load_checkpoint  # noqa: E402
from detr_export.onnx_export import export_onnx  # noqa: E402
from tests import models  # noqa: E402

# Workers side by side share the cores; a full set of threads in each makes all of them many times slower.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(autouse=True)
def same_draws_every_time() -> None:
    """A test that draws random tensors draws the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory written by transformers' `save_pretrained`; not to be changed."""
    config = models.config()
    model = models.oracle(config, models.seeded(config).state_dict())
    return models.save_checkpoint(model, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported and verified; not to be changed."""
    output = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    return export_onnx(load_checkpoint(tiny_checkpoint), output).path


@pytest.fixture(scope="session")
def photo() -> Path:
    """A photograph, 427 x 640 pixels."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
