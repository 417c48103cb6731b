"""`Memory`: what pictures are estimated to take until they are answered, and who is refused because of it.

The estimate is of what grows with a picture. It is derived from a ResNet-50's widest layers, and twice what ONNX Runtime was
seen to take for one picture; a model that keeps more, and what a library holds back for later, take more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

from detr_export.runtimes.serving.refusals import RETRY_AFTER, TOO_LARGE, TOO_MANY, Refusal

Size = tuple[int, int]  # (height, width), pixels

# Bytes of a pixel of the picture. Pillow has 4: decoded, upright, drawn on and about to be encoded.
_PICTURE = 4 * 4
_SEGMENTS = 16  # and for segments: the map, the best score so far, and what is merged
# Bytes of a pixel of what the model gets. float32: the input has 3 channels; a ResNet-50 then has 64 at half the height and
# width, twice, and 256 at a quarter, three times: before a block, after it, and beside it.
_MODEL = 4 * (3 + 2 * 64 // 4 + 3 * 256 // 16)


class Memory:
    """Bounds what the pictures in a server take together. Threads may share it.

    Args:
        model_size: gives the size at which the model gets a picture.
        segments: whether the model draws masks.
        limit: in bytes; None for none.
    """

    def __init__(self, model_size: Callable[[Size], Size], segments: bool, limit: Optional[int]) -> None:
        self._model_size = model_size
        self._picture = _PICTURE + (_SEGMENTS if segments else 0)
        self._limit = limit
        self._lock = threading.Lock()
        self._held = 0

    @contextmanager
    def place(self) -> Iterator[Callable[[Size], None]]:
        """Yields what to call with a picture's size before it is decoded. What it takes is given back at the block's end.

        The call raises Refusal: 413, the picture would take too much alone; 429, with those that are there.
        """
        taken: list[int] = []

        def take(size: Size) -> None:
            if self._limit is None:
                return
            needed = self._picture * size[0] * size[1] + self.of_batch([size])
            if needed > self._limit:
                raise Refusal(
                    TOO_LARGE,
                    f"the picture of {size[1]}x{size[0]} pixels would take about {needed} bytes; expected at most "
                    f"{self._limit}; shrink it first",
                )
            with self._lock:
                if self._held + needed > self._limit:
                    raise Refusal(
                        TOO_MANY,
                        "the memory of the server is taken by other pictures; try again later",
                        retry_after=RETRY_AFTER,
                    )
                self._held += needed
                taken.append(needed)

        try:
            yield take
        finally:
            with self._lock:
                self._held -= sum(taken)

    def of_batch(self, sizes: Sequence[Size]) -> int:
        """What the model takes for pictures of these sizes, padded to the largest."""
        inside = [self._model_size(size) for size in sizes]
        return _MODEL * len(inside) * max(height for height, _ in inside) * max(width for _, width in inside)

    def allows(self, sizes: Sequence[Size]) -> bool:
        """Whether pictures of these sizes may be one batch."""
        return self._limit is None or self.of_batch(sizes) <= self._limit
