"""The gate of int8 files: layers stay float, those that cost most first, until the file is accurate enough.

Nothing in PyTorch computes as an int8 file does, so no comparison of numbers can judge one. Its scores can.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from detr_export.benchmarks.accuracy import gate
from detr_export.benchmarks.accuracy.results import Evaluation
from detr_export.benchmarks.accuracy.scores import Annotated
from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.export import Draft
from detr_export.graphs.int8.pictures import require_apart
from detr_export.runtimes.errors import InputError, VerificationError
from detr_export.runtimes.progress import SILENT, Progress

DEFAULT_MAX_DROP = 0.003


def require_unseen(pictures: tuple[Any, ...], data: Annotated) -> None:
    """Refuses to score a file on pictures that it was calibrated on.

    Raises:
        InputError: a picture is in both.
    """
    # One that is missing is reported when it is to be scored.
    require_apart(pictures, [path for path in data.pictures() if path.is_file()])


def settle_int8(
    draft: Draft,
    checkpoint: Checkpoint,
    data: Annotated,
    task: str,
    max_drop: float = DEFAULT_MAX_DROP,
    limit: int | None = None,
    sensitivity: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """Scores an int8 file, and keeps more of its layers float as long as it is less accurate than its checkpoint.

    Args:
        draft: of `exported`; its file is written anew with the layers that stay float, and with its scores.
        checkpoint, data, task, max_drop, limit: as in `gate.require_accuracy`.
        sensitivity: whether the report has what each layer costs.
        progress: is told each step.

    Raises:
        VerificationError: the file is less accurate even with a single layer in int8, or there are no scores to compare.
        Others as `gate.require_accuracy`.
    """
    int8 = draft.int8
    if int8 is None:
        raise InputError("the draft is not int8; use gate.require_accuracy")
    progress.stage("scoring the int8 file and its checkpoint")
    with gate.open_checkpoint(checkpoint) as reference:
        evaluation = gate.evaluate_both(draft.path, reference, data, task, limit, progress)
    count = 1
    while lost := gate.drops(evaluation, max_drop):
        kept = int8.keep_next(count)
        if not kept:
            raise VerificationError(
                f"the int8 file is less accurate than its checkpoint: {', '.join(lost)} on {evaluation.images} images, with "
                f"a single layer in int8; at most {max_drop:g} is allowed. Give more or other calibration pictures, another "
                "--calibration-method, or a smaller --int8-scope"
            )
        progress.stage(f"{', '.join(lost)}; scoring it with {len(kept)} more layers in float")
        draft.settle_int8(sensitivity)
        found = gate.evaluate_both(draft.path, None, data, task, limit, progress)
        evaluation = replace(found, reference=evaluation.reference)
        count *= 2
    int8.score(_recorded(evaluation))
    draft.settle_int8(sensitivity)
    return evaluation


def _recorded(evaluation: Evaluation) -> dict[str, Any]:
    metrics = evaluation.accuracy.metrics()
    scores = {f"{kind} {name}": metrics.get(kind, {}).get(name) for kind, name in gate.SCORES}
    return {
        "images": evaluation.images,
        "scores": {name: value for name, value in scores.items() if value is not None},
        "difference": gate.changes(evaluation),
    }
