"""What a GPU makes of DETR in everything that is installed for it: `detr-bench gpu`.

R50 and R50-panoptic with seeded weights at 800x1066, batch 1 and 8, in PyTorch (eager, in half precision, and compiled),
ONNX Runtime (CUDA, TensorRT, TensorRT-RTX) and TensorRT itself. All of them are compared with the checkpoint in PyTorch on
the CPU. A runtime that is not installed or fails stands in the report with its reason.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detr_export.benchmarks.speed.report import Report, Variant
from detr_export.benchmarks.speed.run import measure_targets
from detr_export.benchmarks.speed.settings import DEFAULT_ROUNDS, check_settings
from detr_export.benchmarks.speed.statistics import is_beyond
from detr_export.benchmarks.speed.tables import write_report
from detr_export.benchmarks.speed.targets import Target
from detr_export.runtimes.errors import BackendError, DetrError, first_line, missing_extra
from detr_export.runtimes.progress import SILENT, Progress

SIZE = (800, 1066)  # height and width in pixels
BATCHES = (1, 8)
MODELS = {"r50": False, "r50-panoptic": True}  # by name, whether it segments
CHECKPOINT = "checkpoint"
GRAPHS = ("fp32", "fp16")
ENGINES = {f"{precision} engine": precision for precision in GRAPHS}  # by name, the graph that each is built from
# What is measured: the backend, and what it opens.
VARIANTS = (
    ("torch-cuda", CHECKPOINT),
    ("torch-cuda-fp16", CHECKPOINT),
    ("torch-compile-cuda-fp16", CHECKPOINT),
    ("ort-cuda", "fp32"),
    ("ort-cuda", "fp16"),
    ("ort-tensorrt", "fp16"),
    ("ort-tensorrt-rtx", "fp32"),
    ("ort-tensorrt-rtx", "fp16"),
    ("tensorrt", "fp32 engine"),
    ("tensorrt", "fp16 engine"),
)
# What is expected of an H200: the time of R50's fp16 engine at batch 1, and its lead over compiled PyTorch.
GOAL_MS, GOAL_LEAD = 1.5, 1.3
_REFERENCE = "the checkpoint in PyTorch on the CPU is what the outputs are compared with; it is not timed"
_RESULTS = Path("benchmarks/results")


def run_gpu(
    output: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    runs: int | None = None,
    seconds: float | None = None,
    progress: Progress = SILENT,
    command: Sequence[str] | None = None,
) -> dict[str, Report]:
    """Measures both models on the first GPU, and writes a report of each as soon as it is done.

    Args:
        output: the folder for the reports, each in a folder of its own; benchmarks/results/GPU-DATE when None.
        overwrite, threads, rounds, runs, seconds, progress, command: as in `detr_export.benchmarks.run`.

    Returns:
        The report of each model by the folder that it is in. After an interruption, later models are missing.

    Raises:
        BackendError: there is no GPU, or a package of the extra `bench` is not installed.
        InputError: an argument is out of its range.
        OutputError: a report exists or cannot be written.
    """
    gpu = find_gpu()
    folder = _RESULTS / f"{_as_file_name(gpu)}-{datetime.date.today()}" if output is None else Path(output)
    # Both folders are checked before an hour of work, not after it.
    settings = {
        model: check_settings(
            *([SIZE], BATCHES, threads, rounds, runs, seconds), callers=1, output=folder / model, overwrite=overwrite
        )
        for model in MODELS
    }
    reports: dict[str, Report] = {}
    for model, panoptic in MODELS.items():
        with tempfile.TemporaryDirectory(prefix="detr-bench-") as work:
            targets, failed = make_targets(model, panoptic, Path(work), progress)
            report = measure_targets(targets, settings[model], failed, progress=progress, command=command)
        report = replace(report, notes=[_REFERENCE, *([goals(report)] if model == "r50" else [])])
        write_report(report, folder / model)
        reports[str(folder / model)] = report
        if report.method.interrupted:
            break
    return reports


def find_gpu() -> str:
    """Name of the first GPU.

    Raises:
        BackendError: there is none.
    """
    if importlib.util.find_spec("torch") is None:
        raise missing_extra("torch", "export")
    import torch

    from detr_export.runtimes.backends.cuda import opening as cuda_opening

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        return cuda_opening.open_device().name
    except DetrError as error:
        raise BackendError(f"there is no GPU to measure: {error}") from error


def make_targets(
    model: str, panoptic: bool, folder: Path, progress: Progress = SILENT
) -> tuple[list[Target], list[Variant]]:
    """Makes all files of a model, and the targets that open them.

    Args:
        model: its name in the report.
        panoptic: whether it segments.
        folder: where files may be written.
        progress: what is told of the stages.

    Returns:
        The targets, the reference first; and the variants whose file could not be made, with the reason.
    """
    from detr_export.seeding import write_seeded_checkpoint

    progress.stage(f"making {model}")
    made: dict[str, Path] = {CHECKPOINT: write_seeded_checkpoint(folder / model, panoptic)}
    reasons: dict[str, str] = {}

    def attempt(name: str, make: Callable[[], Path]) -> None:
        progress.stage(f"making {model}, {name}")
        try:
            made[name] = make()
        except DetrError as error:
            reasons[name] = str(error)
        except Exception as error:  # of a library; the other variants go on
            reasons[name] = f"{type(error).__name__}: {first_line(error)}"

    for name in GRAPHS:
        attempt(name, lambda name=name: _export(made[CHECKPOINT], name, folder))  # type: ignore[misc]
    for name, graph in ENGINES.items():
        if graph in made:
            attempt(name, lambda graph=graph: _build(made[graph]))  # type: ignore[misc]
        else:
            reasons[name] = reasons[graph]
    return list_targets(model, made, reasons)


def list_targets(model: str, made: Mapping[str, Path], reasons: Mapping[str, str]) -> tuple[list[Target], list[Variant]]:
    """The targets of a model, the reference first; and the variants without a file.

    Args:
        model: its name in the report.
        made: the checkpoint and the files that were made, by `CHECKPOINT`, `GRAPHS` and `ENGINES`.
        reasons: why the others were not made.
    """
    targets = [Target("torch", str(made[CHECKPOINT]), f"torch:{model}", timed=False)]
    failed = []
    for backend, name in VARIANTS:
        title = f"{backend}:{model}" + ("" if name == CHECKPOINT else f" {name.split()[0]}")
        if name in made:
            targets.append(Target(backend, str(made[name]), title))
        else:
            failed.append(Variant(title, backend, f"{model} {name}", error=reasons[name]))
    return targets, failed


def goals(report: Report) -> str:
    """One line: R50's fp16 engine at batch 1 beside what is expected of it on an H200."""
    timed = [item for item in report.measurements if item.batch == 1 and item.session_ms is not None]
    times = {item.variant: item.session_ms.p50 for item in timed if item.session_ms}
    noise = next((item.noise for item in timed if item.noise), None)
    engine, compiled = times.get("tensorrt:r50 fp16"), times.get("torch-compile-cuda-fp16:r50")
    goal = f"(expected of an H200: at most {GOAL_MS} ms, and at least {GOAL_LEAD} times as fast)"
    if engine is None:
        return f"the fp16 engine was not timed at batch 1 {goal}"
    if compiled is None:
        lead = "compiled PyTorch was not timed"
    else:
        lead = f"{compiled / engine:.2f} times as fast as compiled PyTorch"
        if noise and not is_beyond(compiled / engine, noise.session):
            lead += ", which is no difference"
    return f"the fp16 engine takes {engine:.2f} ms at batch 1, {lead} {goal}"


def _export(checkpoint: Path, precision: str, folder: Path) -> Path:
    from detr_export.engines.source import make_graph

    return make_graph(str(checkpoint), precision, folder)


def _build(graph: Path) -> Path:
    from detr_export.engines.build import build_engine
    from detr_export.engines.options import EngineOptions
    from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile

    output = graph.with_suffix(".engine")
    shapes = [(batch, *SIZE) for batch in BATCHES]
    # The benchmark compares the engine itself, and a disagreement is a result.
    build_engine(graph, output, EngineOptions(profiles=tuple(EngineProfile(*[shape] * 3) for shape in shapes), verify=False))
    return output


def _as_file_name(text: str) -> str:
    """Lower case, with hyphens in place of everything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
