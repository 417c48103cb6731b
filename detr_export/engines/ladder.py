"""The steps of `--fallback`: each keeps more of the graph in fp32 than the one before it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from detr_export.graphs.options import ExportOptions


@dataclass(frozen=True)
class Step:
    """One graph to try."""

    name: str  # in messages and in the sidecar
    kept: str  # what stays fp32, in words: "keep ... in fp32"
    options: ExportOptions  # how the graph is exported


LADDER = (
    Step("fp16", "the islands alone", ExportOptions(precision="fp16")),
    Step("fp32-attention", "the attention", ExportOptions(precision="fp16", keep_fp32="attention")),
    Step("fp32-transformer", "the transformer", ExportOptions(precision="fp16", keep_fp32="transformer")),
    Step("fp32", "everything", ExportOptions()),
)
FIRST, LAST = LADDER[0], LADDER[-1]


def steps(fp16: bool, fallback: bool) -> tuple[Step, ...]:
    """What is tried, in this order: fp32 alone without `fp16`; fp16 alone, or with `fallback` the whole ladder."""
    if not fp16:
        return (LAST,)
    return LADDER if fallback else (FIRST,)


def step_named(name: str) -> Step:
    """The step of that name."""
    return next(step for step in LADDER if step.name == name)


def step_after(name: str) -> Step | None:
    """The step that keeps more in fp32 than the one of that name; None after the last, and for a name of no step."""
    return next((step for before, step in itertools.pairwise(LADDER) if before.name == name), None)
