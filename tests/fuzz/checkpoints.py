"""Targets that read weights: safetensors, original `.pth` files, states of training, arrays in `.npz` files."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.mutation import mutate_safetensors, mutate_zip
from tests.fuzz.target import Function, Target, require_finite


def _safetensors(folder: Path) -> Function:
    from detr_export.checkpoints.reading import read_weights

    file = folder / "model.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        require_finite({name: value.numpy() for name, value in read_weights([file]).items()}, "weights")

    return read


def _pth(folder: Path) -> Function:
    from detr_export.checkpoints.reading import load_checkpoint

    file = folder / "detr.pth"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        load_checkpoint(file).config.to_dict()

    return read


def _state(folder: Path) -> Function:
    from detr_export.training.state import STATE_NAME, read_state

    file = folder / STATE_NAME

    def read(data: bytes) -> None:
        # `read_state` maps the file into memory, so a new one is written for each input.
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        read_state(file)

    return read


def _arrays(folder: Path) -> Function:
    from detr_export.verification.array_file import read_arrays

    file = folder / "arrays.npz"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        read_arrays(file)

    return read


TARGETS = (
    Target("safetensors", _safetensors, mutate_safetensors, 60_000, 1_200),
    Target("pth", _pth, mutate_zip, 20_000, 360),
    Target("state", _state, mutate_zip, 20_000, 360),
    Target("arrays", _arrays, mutate_zip, 20_000, 360),
)
