"""Simplifying an exported graph with onnxsim: constants folded, batch norm merged into convolutions, shapes shared.

onnxsim's own comparison of before and after is switched off: its limits are constants. The gate compares the simplified file
with the checkpoint, over more sizes and by a measured limit.
"""

from __future__ import annotations

import contextlib
import io

import onnx

import detr_export.runtimes.backends.ort.telemetry  # noqa: F401  # before a library imports onnxruntime
from detr_export.graphs.modules import carry_modules
from detr_export.runtimes.errors import ArtifactError, missing_extra
from detr_export.signals import interruption_in

# These would turn each projection of a (batch, length, channels) tensor into Reshape, Gemm, Reshape.
_SKIPPED = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a simplified copy with the same inputs and outputs; whether it gives the same numbers is for the gate to say.

    Raises:
        ArtifactError: onnxsim fails.
    """
    try:
        import onnxsim
    except ImportError:
        raise missing_extra("onnxsim", "export") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # onnxsim prints its progress; stdout is for results
            simplified, _ = onnxsim.simplify(model, check_n=0, skipped_optimizers=_SKIPPED)
    except Exception as error:  # its C++ side raises whatever it likes
        if interruption_in(error) is not None:
            raise KeyboardInterrupt from error
        raise ArtifactError(f"onnxsim failed: {error}; export with --no-simplify") from error
    carry_modules(model, simplified)  # onnxsim drops the metadata of nodes
    return simplified
