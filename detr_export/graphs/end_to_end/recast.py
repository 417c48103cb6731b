"""An end-to-end graph in fp16: the DETR in it is cast, and what is around it stays fp32."""

from __future__ import annotations

import onnx

from detr_export.graphs.end_to_end.composing import compose, plain_part
from detr_export.graphs.fp16.casting import to_fp16
from detr_export.runtimes.described import processor_of
from detr_export.runtimes.metadata import Metadata


def end_to_end_to_fp16(model: onnx.ModelProto, metadata: Metadata, keep_fp32: str | None = None) -> onnx.ModelProto:
    """The graph of an fp32 end-to-end file as the fp16 export of its checkpoint would be.

    Args:
        model: end to end, in fp32.
        metadata: the file's.
        keep_fp32: as in `to_fp16`.

    Raises:
        ArtifactError: as in `to_fp16`.
        BackendError: onnxruntime, whose converter is used, is not installed.
    """
    assert metadata.end_to_end is not None
    plain, _ = to_fp16(plain_part(model), keep_fp32=keep_fp32)
    return compose(plain, processor_of(metadata), metadata.end_to_end)
