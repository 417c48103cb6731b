"""Targets that read one JSON document: configurations, metadata, sidecars, recipes, golden data, the index of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutation import mutate_json, mutate_lines
from tests.fuzz.target import Function, Target, require_finite


def _config(folder: Path) -> Function:
    from detr_export.config import DetrConfig

    file = folder / "config.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        config = DetrConfig.from_pretrained(file)
        json.dumps(config.to_dict(), allow_nan=False)
        _ = config.timm_options, config.output_stride, config.label2id, config.num_labels
        DetrConfig.from_dict(config.to_dict())

    return read


def _backbone(folder: Path) -> Function:
    read_config = _config(folder)
    rest = {"model_type": "detr", "use_timm_backbone": False, "backbone": None, "num_queries": 5}
    start = json.dumps(rest)[:-1].encode() + b', "backbone_config": '

    def read(data: bytes) -> None:
        read_config(start + data + b"}")

    return read


def _processor(folder: Path) -> Function:
    from detr_export.checkpoints.processors import read_processor
    from detr_export.config import DetrConfig

    config = DetrConfig()
    picture = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)

    def read(data: bytes) -> None:
        (folder / "preprocessor_config.json").write_bytes(data)
        processor = read_processor(folder, config)
        json.dumps(processor.to_dict())
        batch = processor(picture, return_tensors="np")
        require_finite(dict(batch), "batch")

    return read


def _metadata(folder: Path) -> Function:
    from detr_export.runtimes.image_runner import processor_of
    from detr_export.runtimes.metadata import Metadata
    from detr_export.runtimes.session import TensorSpec, check_inputs

    specs = (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),)
    arrays = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}

    def read(data: bytes) -> None:
        # ONNX Runtime gives text, and what is not UTF-8 does not get that far.
        found = Metadata.from_json(data.decode("utf-8", "replace"))
        found.to_json()
        processor_of(found)
        check_inputs(specs, arrays, found)

    return read


def _sidecar(folder: Path) -> Function:
    from detr_export.runtimes.backends.tensorrt.admission import check_verified
    from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, source_of

    engine = folder / "model.engine"
    file = folder / "model.engine.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        sidecar = read_sidecar(engine)
        assert sidecar is not None
        sidecar.to_json()
        source_of(engine)
        check_verified(engine, strict=True)

    return read


def _index(folder: Path) -> Function:
    from detr_export.checkpoints.reading import sha256_of_directory

    (folder / "model-00001-of-00002.safetensors").write_bytes(b"1")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"2")

    def read(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        sha256_of_directory(folder)

    return read


def _golden(folder: Path) -> Function:
    from detr_export.verification.golden.reading import read_golden

    arrays = {"x": np.zeros((1, 2), "<f4"), "y": np.ones((1, 2), "<f4")}
    np.savez(folder / "a.npz", **arrays)
    for name, array in arrays.items():
        (folder / f"a.{name}.bin").write_bytes(array.tobytes())

    def read(data: bytes) -> None:
        (folder / "index.json").write_bytes(data)
        require_finite(dict(read_golden(folder).tolerances), "tolerances")

    return read


def _recipe(folder: Path) -> Function:
    from detr_export.runtimes.documents import parse
    from detr_export.runtimes.errors import InputError
    from detr_export.training.options import TrainingOptions

    def read(data: bytes) -> None:
        document: Any = parse(data, "recipe.json", InputError)
        if isinstance(document, dict):
            TrainingOptions.from_dict(document).to_dict()

    return read


def _log(folder: Path) -> Function:
    from detr_export.training.training_log import LOG_NAME, TrainingLog

    def read(data: bytes) -> None:
        (folder / LOG_NAME).write_bytes(data)
        log = TrainingLog(folder)
        log.resume("detector", 10)
        log.write()

    return read


TARGETS = (
    Target("config", _config, mutate_json, 130_000, 2_400),
    Target("backbone", _backbone, mutate_json, 100_000, 2_400),
    Target("processor", _processor, mutate_json, 90_000, 1_200),
    Target("metadata", _metadata, mutate_json, 130_000, 2_400),
    Target("sidecar", _sidecar, mutate_json, 100_000, 1_800),
    Target("index", _index, mutate_json, 60_000, 1_200),
    Target("golden", _golden, mutate_json, 30_000, 600),
    Target("recipe", _recipe, mutate_json, 60_000, 1_200),
    Target("log", _log, mutate_lines, 30_000, 600),
)
