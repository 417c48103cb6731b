"""`Segment`, one region of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Segment:
    """One region of a segmentation."""

    id: int  # its value in the map
    label: int  # id of its class, as in the checkpoint
    name: str  # name of the class
    score: Optional[float]  # probability of the class, of the best query if several were fused; None in semantic maps
    area: int  # pixels
    box: tuple[int, int, int, int]  # (x_min, y_min, x_max, y_max) around its pixels, maxima exclusive
    was_fused: bool = False  # whether all regions of its class share one id
