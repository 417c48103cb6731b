"""What came out of many pictures together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from detr_export.runtimes.counts import most_frequent
from detr_export.runtimes.file_batches import FilePrediction


@dataclass
class Totals:
    """Counts over pictures, as they come."""

    pictures: int = 0  # all of them
    failed: int = 0  # of these, the ones with an error
    with_more_pages: int = 0  # whose file has pages that nobody asked for
    objects: Counter[str] = field(default_factory=Counter)  # detections or segments of each class, or tables

    def add(self, outcome: FilePrediction) -> None:
        """Counts one picture."""
        self.pictures += 1
        self.failed += outcome.error is not None
        self.with_more_pages += outcome.has_more_pages
        self.objects.update(outcome.names)

    def summary(self, seconds: float) -> str:
        """Lines for people: how many pictures, how fast, and how many objects of each class, the most frequent first.

        Args:
            seconds: how long the pictures took.
        """
        ended = f"{self.pictures} pictures in {seconds:.1f} s, {self.pictures / max(seconds, 1e-9):.1f} a second"
        lines = [ended + (f"; {self.failed} failed" if self.failed else "")]
        found = most_frequent(self.objects)
        width = max((len(name) for name in self.objects), default=0)
        digits = max((len(str(count)) for count in self.objects.values()), default=0)
        lines += [f"  {name:<{width}}  {count:>{digits}}" for name, count in found]
        return "\n".join(lines if found else [*lines, "  nothing found"])
