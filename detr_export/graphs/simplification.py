"""Simplifying an exported graph with onnxsim: constants folded, batch norm merged into convolutions, shapes shared."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

import numpy as np
import onnx

from detr_export.runtimes.errors import ArtifactError, missing_extra
from detr_export.verification.comparison import Case

# These would turn each projection of a (batch, length, channels) tensor into Reshape, Gemm, Reshape.
_SKIPPED = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]
CASE = Case(97, 131, ((97, 131), (60, 131)))  # of the inputs that onnxsim compares with
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4  # of onnxsim's own comparison, before the gate's stricter one against the checkpoint


def simplify(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Returns a simplified copy with the same inputs and outputs; on `inputs` it gives the same numbers.

    Raises:
        ArtifactError: onnxsim fails, or its own comparison of before and after does.
    """
    try:
        import onnxsim
    except ImportError:
        raise missing_extra("onnxsim", "export") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # onnxsim prints its progress; stdout is for results
            simplified, same = onnxsim.simplify(
                model,
                check_n=1,
                input_data=dict(inputs),
                skipped_optimizers=_SKIPPED,
                check_rtol=_RELATIVE,
                check_atol=_ABSOLUTE,
            )
    except Exception as error:  # its C++ side raises whatever it likes
        raise ArtifactError(f"onnxsim failed: {error}; export with --no-simplify") from error
    if not same:
        raise ArtifactError("the simplified graph gives other numbers than the original; export with --no-simplify")
    return simplified
