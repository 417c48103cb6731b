"""The gate of an engine: it must give the checkpoint's numbers at the corners of every profile.

Each profile is run at its smallest, its tuned and its largest size.
"""

from __future__ import annotations

from collections.abc import Sequence

from detr_export.engines.ladder import step_after
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.errors import VerificationError
from detr_export.verification.cases import Case, cases_of_size
from detr_export.verification.comparison import Parity


def engine_grid(profiles: Sequence[EngineProfile]) -> list[Case]:
    """The cases for profiles, each size once."""
    sizes = dict.fromkeys(size for profile in profiles for size in (profile.minimum, profile.optimum, profile.maximum))
    return [case for size in sizes for case in cases_of_size(*size)]


def require_engine(parity: Parity, name: str, step: str) -> None:
    """Refuses an engine that disagrees with its checkpoint.

    Args:
        parity: from `compare`.
        name: the engine, for the message.
        step: the name of its step of the ladder, or its precision.

    Raises:
        VerificationError: says how far it is off, and which layers to keep in fp32 next.
    """
    if parity.passed:
        return
    following = step_after(step)
    advice = (
        f"next keep {following.kept} in fp32, which --fallback tries by itself"
        if following is not None
        else "this TensorRT computes the graph wrongly on this GPU: run detr-export doctor, and try another version"
    )
    raise VerificationError(f"{name} disagrees with its checkpoint: {parity.disagreement()}; {advice}")
