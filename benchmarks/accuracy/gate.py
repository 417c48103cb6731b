"""A gate for exported files: on annotated images they must be nearly as accurate as their checkpoint.

Parity bounds how far one number may be off. This gate measures what the differences do to AP and PQ, which is what matters
for a half-precision file.
"""

from __future__ import annotations

from pathlib import Path

from detr_export.benchmarks.accuracy.evaluation import Evaluation, evaluate
from detr_export.benchmarks.accuracy.scores import Annotated
from detr_export.checkpoints.reading import Checkpoint
from detr_export.runtimes.errors import VerificationError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.progress import SILENT, Progress

DEFAULT_MAX_DROP = 0.002
SCORES = (("box", "AP"), ("mask", "AP"), ("panoptic", "PQ"))


def require_accuracy(
    file: Path,
    checkpoint: Checkpoint,
    data: Annotated,
    task: str,
    max_drop: float = DEFAULT_MAX_DROP,
    limit: int | None = None,
) -> Evaluation:
    """Scores a file and its checkpoint on the same images, and refuses a file that is less accurate.

    Args:
        file: the exported file.
        checkpoint: what it was exported from, as `load_checkpoint` read it.
        data: from `scores.find_annotated`. PQ is scored for a segmentation model where the data has panoptic annotations.
        task: the file's, `detection` or `segmentation`.
        max_drop: how much lower box AP, mask AP and PQ may be; they lie in [0, 1].
        limit: how many images are scored; all when None.

    Raises:
        VerificationError: a score is lower by more than `max_drop`, or there is none to compare.
        Others as `evaluate`.
    """
    with open_checkpoint(checkpoint) as reference:
        evaluation = evaluate_both(file, reference, data, task, limit)
    lost = drops(evaluation, max_drop)
    if lost:
        raise VerificationError(
            f"the exported file is less accurate than its checkpoint: {', '.join(lost)} on {evaluation.images} images; "
            f"at most {max_drop:g} is allowed"
        )
    return evaluation


def evaluate_both(
    file: Path, reference: Predictor | None, data: Annotated, task: str, limit: int | None, progress: Progress = SILENT
) -> Evaluation:
    """Scores a file on annotated images, and its checkpoint on the same ones; arguments as in `require_accuracy`."""
    panoptic = data.panoptic if task == "segmentation" else None
    return evaluate(file, data.images, data.instances, panoptic, limit, against=reference, progress=progress)


def drops(evaluation: Evaluation, max_drop: float) -> list[str]:
    """The scores that are too low, for a message.

    Raises:
        VerificationError: there is no score to compare.
    """
    known = changes(evaluation)
    if not known:
        raise VerificationError(f"the {evaluation.images} images have no annotations that AP could be computed from")
    return [f"{name} is {-change:.4f} lower" for name, change in known.items() if -change > max_drop]


def changes(evaluation: Evaluation) -> dict[str, float]:
    """Box AP, mask AP and PQ, as far as both have them: the file's minus the checkpoint's."""
    difference = evaluation.difference() or {}
    found = {f"{kind} {name}": difference[kind][name] for kind, name in SCORES if kind in difference}
    return {name: change for name, change in found.items() if change is not None}


def open_checkpoint(checkpoint: Checkpoint) -> Predictor:
    """A checkpoint in PyTorch on the CPU, for its own task."""
    from detr_export.loading import reference_session

    return Predictor(reference_session(checkpoint))


def summary(evaluation: Evaluation) -> str:
    """One line: each score of the file, and its difference from the checkpoint's."""
    difference, metrics = evaluation.difference() or {}, evaluation.accuracy.metrics()
    parts = []
    for kind, name in SCORES:
        value, change = metrics.get(kind, {}).get(name), difference.get(kind, {}).get(name)
        if value is not None and change is not None:
            parts.append(f"{kind} {name} {value:.4f} ({change:+.4f})")
    return f"on {evaluation.images} images {', '.join(parts)} against the checkpoint"
