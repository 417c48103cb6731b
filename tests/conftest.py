"""Shared fixtures, and the stand-in that lets the oracle (transformers, timm) import without torchvision's C++ library.

There is no CPU wheel of torchvision for every torch that this project is tested with, and importing the CUDA wheel
beside a CPU torch fails because its C++ operators were never registered. None of them is called here.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: a name that is not in the cache would be asked for, and again

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http

from detr_export.benchmarks.oracle import make_torchvision_importable

make_torchvision_importable()

from detr_export.checkpoints.reading import load_checkpoint  # noqa: E402
from detr_export.graphs import export  # noqa: E402
from detr_export.graphs.export import ExportOptions, export_onnx  # noqa: E402
from detr_export.modeling.segmentation import DetrForSegmentation  # noqa: E402
from detr_export.seeding import seed_weights  # noqa: E402
from tests import models  # noqa: E402
from tests.rtx.compiler import rtx_compiler  # noqa: E402, F401
from tests.tensorrt_double.fixtures import (  # noqa: E402, F401
    fresh_libraries,
    install_tensorrt,
    no_tensorrt,
    rtx,
    tensorrt,
)
from tests.tracing import traced_once  # noqa: E402

# Workers side by side share the cores; a full set of threads in each makes all of them many times slower.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session", autouse=True)
def each_graph_is_traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In all workers together; commands in processes of their own trace for themselves."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("trace", "trace_mask_head"):
            patch.setattr(export, name, traced_once(getattr(export, name), folder))
        yield


@pytest.fixture(autouse=True)
def same_draws_every_time() -> None:
    """A test that draws random tensors draws the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command ignores signals at its end, and a test may run one here: what is started later could not be ended."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


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
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded segmentation checkpoint whose masks cover about half of an image; not to be changed."""
    model = DetrForSegmentation(models.config(encoder_attention_heads=8, decoder_attention_heads=8))
    seed_weights(model, 0)
    with torch.no_grad():
        model.mask_head.out_lay.bias -= 0.9
    folder = tmp_path_factory.mktemp("segmenter") / "checkpoint"
    model.save_pretrained(folder)
    settings = folder / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "size": models.SIZE}))
    return folder


@pytest.fixture(scope="session")
def segmenter_onnx(segmenter: Path) -> Path:
    """The checkpoint, exported; not to be changed."""
    options = ExportOptions(simplify=False, verify=False)
    return export_onnx(load_checkpoint(segmenter), segmenter.parent / "segmenter.onnx", options).path


@pytest.fixture(scope="session")
def segmenter_one_graph(segmenter: Path) -> Path:
    """The same with its masks in the same graph; not to be changed."""
    options = ExportOptions(simplify=False, verify=False, one_graph=True)
    return export_onnx(load_checkpoint(segmenter), segmenter.parent / "one_graph.onnx", options).path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, in offline mode; `models.publish` puts files into it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _http.reset_sessions()
    yield tmp_path / "hub"
    _http.reset_sessions()


@pytest.fixture(scope="session")
def photo() -> Path:
    """A photograph, 427 x 640 pixels."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
