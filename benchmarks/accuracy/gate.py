"""A gate for exported files: on annotated images they must be as accurate as their checkpoint, but for a little.

Parity bounds what one number may differ by; this asks what the differences do to AP and PQ, which is what matters for a
half-precision file.
"""

from __future__ import annotations

from pathlib import Path

from detr_export.benchmarks.accuracy.evaluation import Evaluation, evaluate
from detr_export.benchmarks.accuracy.scores import Annotated
from detr_export.runtimes.errors import VerificationError

DEFAULT_MAX_DROP = 0.002
_SCORES = (("box", "AP"), ("mask", "AP"), ("panoptic", "PQ"))


def require_accuracy(
    file: str | Path,
    checkpoint: str,
    data: Annotated,
    task: str,
    max_drop: float = DEFAULT_MAX_DROP,
    limit: int | None = None,
) -> Evaluation:
    """Scores a file and its checkpoint on the same images, and lets the file pass or not.

    Args:
        file, checkpoint: what is compared.
        data: from `accuracy.find_annotated`; PQ is scored for a segmentation model where the data has panoptic annotations.
        task: the file's.
        max_drop: how much lower box AP, mask AP and PQ may be, of 1.
        limit: that many images; all when None.

    Raises:
        VerificationError: a score is lower by more than `max_drop`, or there is none to compare.
        Others as `evaluate`.
    """
    panoptic = data.panoptic if task == "segmentation" else None
    evaluation = evaluate(file, data.images, data.instances, panoptic, limit, against=checkpoint)
    difference = evaluation.difference() or {}
    changes = {f"{kind} {name}": difference[kind][name] for kind, name in _SCORES if kind in difference}
    known = {name: change for name, change in changes.items() if change is not None}
    if not known:
        raise VerificationError(f"the {evaluation.images} images have no annotations that AP could be computed from")
    drops = [f"{name} is {-change:.4f} lower" for name, change in known.items() if -change > max_drop]
    if drops:
        raise VerificationError(
            f"the exported file is less accurate than its checkpoint: {', '.join(drops)} on {evaluation.images} images; "
            f"at most {max_drop:g} is allowed"
        )
    return evaluation


def summary(evaluation: Evaluation) -> str:
    """One line: each score of the file, and its difference from the checkpoint's."""
    difference, metrics = evaluation.difference() or {}, evaluation.accuracy.metrics()
    parts = []
    for kind, name in _SCORES:
        value, change = metrics.get(kind, {}).get(name), difference.get(kind, {}).get(name)
        if value is not None and change is not None:
            parts.append(f"{kind} {name} {value:.4f} ({change:+.4f})")
    return f"on {evaluation.images} images {', '.join(parts)} against the checkpoint"
