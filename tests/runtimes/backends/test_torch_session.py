"""PyTorch's session against transformers, and its refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import BackendError, CheckpointError, InputError
from detr_export.runtimes.session import TensorSpec
from detr_export.verification.cases import Case, make_inputs
from tests import models

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> TorchSession:
    return TorchSession.open(tiny_checkpoint)


@torch.no_grad()
def test_same_numbers_as_transformers(session: TorchSession, tiny_checkpoint: Path) -> None:
    oracle = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).eval()
    expected = oracle(**{name: torch.from_numpy(value) for name, value in INPUTS.items()})
    given = session.run(INPUTS)
    assert np.abs(given["logits"] - expected.logits.numpy()).max() <= 1e-4
    assert np.abs(given["pred_boxes"] - expected.pred_boxes.numpy()).max() <= 1e-5


def test_describes_itself(session: TorchSession) -> None:
    assert session.inputs == (
        TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
        TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
    )
    assert session.outputs[0] == TensorSpec("logits", "float32", ("batch", "queries", 6))
    assert session.metadata is not None
    assert session.metadata.id2label == models.LABELS


def test_the_caller_owns_the_outputs(session: TorchSession) -> None:
    first = session.run(INPUTS)
    kept = first["logits"].copy()
    first["logits"][:] = 0
    assert np.array_equal(session.run(INPUTS)["logits"], kept)


@pytest.mark.parametrize("layout", ["fortran", "reversed", "read-only"])
def test_inputs_of_any_memory_layout(layout: str, session: TorchSession) -> None:
    arrays = {}
    for name, value in INPUTS.items():
        if layout == "fortran":
            arrays[name] = np.asfortranarray(value)
        elif layout == "reversed":
            arrays[name] = value[..., ::-1].copy()[..., ::-1]
        else:
            arrays[name] = value.copy()
            arrays[name].setflags(write=False)
    assert np.array_equal(session.run(arrays)["logits"], session.run(INPUTS)["logits"])


def test_eight_threads_give_the_same_results(session: TorchSession) -> None:
    batches = [make_inputs(Case(64, 48 + 8 * index, ((64, 48 + 8 * index),)), 3, True, seed=index) for index in range(8)]
    expected = [session.run(inputs)["logits"] for inputs in batches] * 2
    with ThreadPoolExecutor(8) as pool:
        for given, wanted in zip(pool.map(session.run, batches * 2), expected, strict=True):
            assert np.abs(given["logits"] - wanted).max() <= 1e-5


def test_threads_are_set(tiny_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        TorchSession.open(tiny_checkpoint, threads=1).close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["tpu", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA", "", "mps"])
def test_refuses_devices(device: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match=rf"device is '{device}'; expected cpu, cuda\[:N\], tensorrt"):
        TorchSession.open(tiny_checkpoint, device)


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt:1", "tensorrt-rtx"])
def test_refuses_devices_of_other_backends(device: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match=rf"device is '{device}.*', but PyTorch takes cpu or cuda\[:N\]"):
        TorchSession.open(tiny_checkpoint, device)


def test_cuda_that_is_not_there(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="this PyTorch sees no CUDA device"):
        TorchSession.open(tiny_checkpoint, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match="device is 'cuda:1', but there are 1 CUDA devices"):
        TorchSession.open(tiny_checkpoint, "cuda:1")


def test_refuses_threads(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="threads is 0; expected 1 to"):
        TorchSession.open(tiny_checkpoint, threads=0)


def test_a_closed_session(tiny_checkpoint: Path) -> None:
    session = TorchSession.open(tiny_checkpoint)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run(INPUTS)


def test_checks_its_inputs(session: TorchSession) -> None:
    with pytest.raises(InputError, match="expected pixel_values, pixel_mask"):
        session.run({"pixel_values": INPUTS["pixel_values"]})
    with pytest.raises(InputError, match="other byte order"):
        session.run({**INPUTS, "pixel_values": INPUTS["pixel_values"].astype(">f4")})


def test_learned_positions_end_somewhere(tmp_path: Path) -> None:
    config = models.config(position_embedding_type="learned")
    directory = models.save_checkpoint(models.oracle(config, models.seeded(config).state_dict()), tmp_path / "learned")
    with TorchSession.open(directory) as session:
        assert session.metadata is not None
        assert session.metadata.ranges["width"] == (1, 1600)
        session.run(make_inputs(Case(32, 1600, ((32, 1600),)), 3, True, seed=0))
        with pytest.raises(InputError, match="width is 1601; this model takes 1 to 1600"):
            session.run(make_inputs(Case(32, 1601, ((32, 1601),)), 3, True, seed=0))


def test_a_failing_model_is_a_backend_error(session: TorchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr(session._model, "forward", fail)
    with pytest.raises(BackendError, match=r"PyTorch failed: out of memory$"):
        session.run(INPUTS)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        TorchSession.open(tmp_path / "a.pth")
