"""What fp16 did to an exported model: its weights, and how it compares as GPUs round.

An fp16 file is compared three times: as it is, with every result rounded to fp16 (`fp16_rounding`), as a GPU does and ONNX
Runtime's CPU does not, and with attentions that also add in fp16, as some GPU kernels do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from detr_export.graphs.fp16.casting import Fp16Weights
from detr_export.graphs.fp16_rounding import Watched, rounding_twin
from detr_export.graphs.parts import Parts, save_parts
from detr_export.runtimes.errors import VerificationError
from detr_export.runtimes.mask_head import TwoGraphSession, mask_head_file
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.progress import Progress
from detr_export.runtimes.session import Session
from detr_export.runtimes.temporary import temporary_folder
from detr_export.verification.comparison import Parity, compare, require
from detr_export.verification.differences import rank
from detr_export.verification.reference import Reference


@dataclass(frozen=True)
class Fp16Report:
    """What fp16 did to a model."""

    weights: Fp16Weights
    rounded: Parity | None = None  # with every result rounded to fp16; None when verification was switched off
    accumulated: Parity | None = None  # the same, with attentions that also add in fp16
    largest: float | None = None  # magnitude over the verification grid of what is stored in fp16; its limit is 65504
    largest_node: str | None = None

    def summary(self) -> str:
        """For people."""
        lines = [self.weights.summary()]
        if self.rounded is not None:
            lines.append(f"every result rounded to fp16: {self.rounded.summary()}")
        if self.accumulated is not None:
            lines.append(f"attentions that also add in fp16: {self.accumulated.summary()}")
        if self.largest is not None:
            lines.append(f"largest fp16 value {self.largest:.4g} of 65504, from {self.largest_node}")
        return "\n".join(lines)


def verify_rounded(
    parts: Parts, weights: Fp16Weights, metadata: Metadata, output: Path, reference: Reference, progress: Progress
) -> Fp16Report:
    """Compares an fp16 model with its checkpoint twice more, as GPUs round.

    Args:
        parts: the fp16 graphs.
        weights: what became of their constants.
        metadata: of the file.
        output: the twins that are compared lie in a folder beside it, for a while.
        reference: the checkpoint.
        progress: is told each case.

    Raises:
        VerificationError: a result does not fit into fp16, or the twins disagree with the checkpoint.
    """
    parities: list[Parity] = []
    for accumulates, what in ((False, "every result rounded to fp16"), (True, "attentions that also add in fp16")):
        with _twin(parts, metadata, output.parent, accumulates) as (candidate, watched):
            parities.append(compare(candidate, reference, progress=progress, stage=f"verifying with {what}"))
            largest, node = max((item.largest for item in watched), key=lambda found: rank(found[0]))
            overflows = [name for item in watched for name in item.overflows]
        if overflows:
            raise VerificationError(
                f"{len(overflows)} results do not fit into fp16, which ends at 65504; the first is that of {overflows[0]}, "
                f"the largest is {largest:.4g}; export with --precision fp32"
            )
        require(parities[-1], f"the exported file, with {what},")
    rounded, accumulated = parities
    return Fp16Report(weights, rounded, accumulated, largest, node)


@contextlib.contextmanager
def _twin(parts: Parts, metadata: Metadata, folder: Path, accumulates: bool) -> Iterator[tuple[Session, list[Watched]]]:
    """A session of the graphs whose every result is rounded, and what watches each of them."""
    from detr_export.runtimes.backends.ort.session import OrtSession

    names: list[list[str]] = []

    def rounding(graph: onnx.ModelProto) -> onnx.ModelProto:
        twin, found = rounding_twin(graph, accumulates)
        names.append(found)
        return twin

    twins = parts.each(rounding)
    with temporary_folder(beside=folder / "rounded.onnx") as inner, contextlib.ExitStack() as stack:
        file = inner / "rounded.onnx"
        save_parts(twins, metadata, file)
        files = [file] if twins.mask_head is None else [file, mask_head_file(file)]
        watched = [
            stack.enter_context(Watched(OrtSession(part, spinning=False), found))
            for part, found in zip(files, names, strict=True)
        ]
        yield watched[0] if len(watched) == 1 else TwoGraphSession(*watched), watched
