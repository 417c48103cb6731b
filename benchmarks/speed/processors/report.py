"""The result of the comparison: a row for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detr_export.benchmarks.speed.statistics import Timing
from detr_export.benchmarks.text_table import aligned


@dataclass(frozen=True)
class Row:
    """One comparison."""

    step: str  # "preprocess", "detections", "instances" or "panoptic"
    input: str  # what was processed
    ours: str  # name of our class
    reference: str  # name of the class of transformers
    agreement: str  # what the comparison before the timing found
    ours_ms: Timing  # of one image, a sample a round
    reference_ms: Timing
    ratio_to_reference: float  # ours over theirs, the median over the rounds: below 1 is faster
    ratio_low: float  # its 10th percentile
    ratio_high: float  # its 90th


@dataclass(frozen=True)
class ProcessorReport:
    """What `run_processors` found."""

    rounds: int
    images: Sequence[tuple[int, int]]  # (height, width), pixels
    torch_threads: int
    processing_threads: int  # of our pre-processing and mask merging
    machine: str
    instruction_sets: Sequence[str]  # of the CPU
    load: float | None  # processes that wanted a CPU in the minute before
    versions: Mapping[str, str]
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; every sample is in it, in milliseconds."""
        return {
            "rounds": self.rounds,
            "images_px": [list(size) for size in self.images],
            "torch_threads": self.torch_threads,
            "processing_threads": self.processing_threads,
            "machine": self.machine,
            "instruction_sets": list(self.instruction_sets),
            "load_before": self.load,
            "versions": dict(self.versions),
            "rows": [asdict(row) for row in self.rows],
        }

    def summary(self) -> str:
        """A table in plain text: the median for one image, and the ratio with its spread."""
        head = ("step", "input", "ours", "transformers", "agreement", "ours ms", "theirs ms", "ratio", "10 to 90 %")
        table = [
            head,
            *(
                (
                    *(row.step, row.input, row.ours, row.reference, row.agreement),
                    *(f"{row.ours_ms.p50:.2f}", f"{row.reference_ms.p50:.2f}", f"{row.ratio_to_reference:.2f}"),
                    f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
                )
                for row in self.rows
            ),
        ]
        about = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        how = f"{self.rounds} rounds; milliseconds an image; ratio = ours / theirs; torch threads {self.torch_threads}"
        sets = " ".join(self.instruction_sets) or self.machine
        where = f"our threads {self.processing_threads}; load before {self.load}"
        return "\n".join([*aligned(table, 5), "", where, f"{how}; {about}; {sets}"])
