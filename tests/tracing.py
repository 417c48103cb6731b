"""Tracing each model once in a test run: it takes most of an export, and many tests export the same seeded models."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from filelock import FileLock

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.options import ExportOptions
from detr_export.modeling.deployed import DeployedModel
from detr_export.runtimes.metadata import UINT8

Trace = Callable[[DeployedModel, Checkpoint, ExportOptions], onnx.ModelProto]


def traced_once(trace: Trace, folder: Path) -> Trace:
    """`trace` with a memory that all workers of a run share.

    The key is all that the traced graph depends on: the function, the weights, the configuration, the processor where it is
    part of the graph, and what of the options reaches the tracing. A test that replaces PyTorch's exporter gets what it
    replaced it with.
    """
    exporter = torch.onnx.export

    @functools.wraps(trace)
    def remembered(model: DeployedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
        if torch.onnx.export is not exporter:
            return trace(model, checkpoint, options)
        described = [trace.__name__, checkpoint.config.to_dict()]
        described += [checkpoint.processor.to_dict()] if options.input == UINT8 else []
        described += [model.output_names, options.pixel_mask, options.opset, options.input]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        key = digest.hexdigest()
        file = folder / f"{key}.onnx"
        with FileLock(folder / f"{key}.lock"):
            if not file.exists():
                onnx.save(trace(model, checkpoint, options), str(file))
        return onnx.load(str(file))

    return remembered
