"""Files that say that they are DETRs: the right inputs, outputs and metadata around a graph that computes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, write_sidecar
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.mask_head import mask_head_file
from detr_export.runtimes.metadata import METADATA_KEY, EndToEnd, Metadata
from detr_export.runtimes.session import TensorSpec

LABELS = {0: "N/A", 1: "person", 3: 'car "fast" \\ äö'}
QUERIES = 7
PLAIN = Metadata("detection", LABELS, {"size": {"shortest_edge": 96, "longest_edge": 160}}, pixel_mask=True)
WHOLE = replace(PLAIN, pixel_mask=False, input="image", end_to_end=EndToEnd("bgr", "matmul", QUERIES))
UINT8 = replace(PLAIN, input="uint8")

INPUTS = {
    "float": (
        TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
        TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
    ),
    "uint8": (
        TensorSpec("pixel_values", "uint8", ("batch", "height", "width", 3)),
        TensorSpec("valid_sizes", "int64", ("batch", 2)),
    ),
    "image": (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
}
_LOGITS = (
    TensorSpec("logits", "float32", ("batch", QUERIES, len(LABELS) + 1)),
    TensorSpec("pred_boxes", "float32", ("batch", QUERIES, 4)),
)
OUTPUTS = {
    "float": _LOGITS,
    "uint8": _LOGITS,
    "image": (
        TensorSpec("scores", "float32", ("batch", QUERIES)),
        TensorSpec("labels", "int64", ("batch", QUERIES)),
        TensorSpec("boxes", "float32", ("batch", QUERIES, 4)),
    ),
}


def write_onnx(
    file: Path,
    metadata: Metadata = PLAIN,
    inputs: tuple[TensorSpec, ...] | None = None,
    outputs: tuple[TensorSpec, ...] | None = None,
    weights: str | None = None,
) -> Path:
    """An ONNX file; `weights` is a file beside it that it names."""
    specs = inputs or INPUTS[metadata.input], outputs or OUTPUTS[metadata.input]
    values = [
        [
            helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
            for spec in group
        ]
        for group in specs
    ]
    constant = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    nodes = [helper.make_node("Identity", ["w"], [spec.name]) for spec in specs[1]]
    model = helper.make_model(helper.make_graph(nodes, "nothing", *values, [constant]))
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_json())
    file.parent.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        tensor = model.graph.initializer[0]
        (file.parent / weights).parent.mkdir(exist_ok=True)
        (file.parent / weights).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=weights)
    file.write_bytes(model.SerializeToString())
    return file


def write_two_files(file: Path) -> Path:
    """A detector, and beside it the mask head that it names."""
    shared = {
        "query_states": ("batch", QUERIES, 8),
        "mask_keys": ("batch", 8, "h", "w"),
        "mask_features": ("batch", 9, "h", "w"),
        **{f"mask_pyramid_{number}": ("batch", 4, "h", "w") for number in (1, 2, 3)},
    }
    given = tuple(TensorSpec(name, "float32", shape) for name, shape in shared.items())
    taken = (replace(given[0], shape=("batch", "chosen", 8)), *given[1:])
    masks = (TensorSpec("pred_masks", "float32", ("batch", "chosen", "h", "w")),)
    about = replace(PLAIN, task="segmentation")
    head = write_onnx(mask_head_file(file), replace(about, task="masks"), taken, masks)
    return write_onnx(file, replace(about, mask_head=sha256_of_file(head)), outputs=(*OUTPUTS["float"], *given))


def write_engine(
    file: Path, metadata: Metadata = PLAIN, profiles: tuple[str, ...] = ("1x96x96:1x96x128:2x160x160",), **changes: Any
) -> Path:
    """An engine of two bytes, and its sidecar with some fields changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"go")
    values: dict[str, Any] = dict.fromkeys(("build_key", "source_sha256"), "0" * 64)
    values |= {"sha256": sha256_of_file(file), "library": "tensorrt", "library_version": "11.4.0", "precision": "fp32"}
    values |= {"profiles": profiles, "inputs": INPUTS[metadata.input], "outputs": OUTPUTS[metadata.input]}
    values |= {"targets": ((9, 0),), "layers": {}, "verified": True, "metadata": metadata}
    values |= dict.fromkeys(("cuda", "gpu", "fallback", "attestation", "kernels"))
    values |= dict.fromkeys(("version_compatible", "hardware_compatible"), False)
    write_sidecar(file, EngineSidecar(**{**values, **changes}))
    assert read_sidecar(file) is not None
    return file
