"""How far a file may be from its checkpoint: one table for all precisions.

A limit follows from a measurement wherever that is possible. The checkpoint runs in float64, which is the truth, and once
more in the arithmetic of the file. What that arithmetic gets wrong is the *noise floor*: it depends on the weights, the
images and the processor, so no constant can stand for it. (The masks of `demo` reach 107. There PyTorch's float32 is 2.4e-3
off, and ONNX Runtime's 4.5e-3; on another processor both differ.) A file may be a small multiple of the floor away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detr_export.runtimes.errors import ArtifactError


@dataclass(frozen=True)
class Tolerance:
    """What a file of one precision may do."""

    # How many noise floors the file may be off; None where the checkpoint cannot run in that arithmetic.
    multiple: float | None
    # The largest absolute differences by output name, for comparisons without a float64 model: `detr-bench` compares files
    # with each other, and nothing in PyTorch computes as an int8 engine does.
    constant: Mapping[str, float]


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        multiple=10.0,
        # Seen between two runtimes: 3e-4 on logits, 2e-5 on boxes and 1.5e-2 on the masks of the trained demo.
        constant={"logits": 1e-3, "pred_boxes": 1e-4, "pred_masks": 3e-2, "cross_attention": 1e-3},
    ),
    "fp16": Tolerance(
        # On three kinds of CPU, the most seen is 4.7: a box of a seeded tiny model, with AVX-512. Both the checkpoint and
        # the file round every product; how a query that is close to a decision takes that is chance.
        multiple=8.0,
        # Seen with every result rounded to fp16, on logits, boxes and masks: seeded tiny models 0.067, 0.031 and 0.48,
        # seeded R18 0.034 and 0.0032, masks of the trained demo 6.2. Attention weights of seeded tiny models: 0.042.
        constant={"logits": 0.2, "pred_boxes": 0.045, "pred_masks": 8.0, "cross_attention": 0.1},
    ),
    "int8": Tolerance(
        multiple=None,
        # Eight bits cannot be judged output by output. This only catches what is broken; AP has the say. Seen on the trained
        # demo, with AP and PQ within 0.003: 1.9 on logits, 0.030 on boxes, and 12.8 on masks, which reach 107.
        constant={"logits": 4.0, "pred_boxes": 0.2, "pred_masks": 30.0, "cross_attention": 0.4},
    ),
}


def tolerance_of(precision: str) -> Tolerance:
    """The row of a precision.

    Raises:
        ArtifactError: the precision is unknown.
    """
    if precision not in TOLERANCES:
        raise ArtifactError(f"the file's precision is {precision!r}; expected one of {', '.join(TOLERANCES)}")
    return TOLERANCES[precision]
