"""What a GPU makes of DETR in everything that is installed for it: `detr-bench gpu`.

R50 and R50-panoptic with seeded weights at 800x1066, batch 1 and 8, in PyTorch (eager, in half precision, and compiled),
ONNX Runtime (CUDA, TensorRT, TensorRT-RTX) and TensorRT itself. A runtime that is not installed or fails stands in the
report with its reason.

All of them are compared with the checkpoint in PyTorch on the CPU, on several images, at the size that is measured and at a
second one. One that disagrees anywhere is WRONG there, and its times do not count towards the goals. Engines are built
without a comparison of their own, because this one is made of the same file in every runtime.

All of them take uint8 images: the floats of one image and its mask at 800x1066 are 17 MB, and to copy these would take
longer than the goal allows for everything. The arrays lie in page-locked memory, as far as a library for that is installed.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
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
from detr_export.runtimes.metadata import UINT8
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.temporary import temporary_folder

SIZE = (800, 1066)  # height and width in pixels
BATCHES = (1, 8)
MODELS = {"r50": False, "r50-panoptic": True}  # by name, whether it segments
CHECKED_BATCH = 2  # of the second size, at which outputs are compared and nothing is timed
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
_REFERENCE = (
    "the checkpoint in PyTorch on the CPU is what the outputs are compared with, for {images} images at {sizes}; it is not "
    "timed; images have no padding, so masks are not tested here"
)
_INPUT = (
    "the session's time begins with images in host memory, as the column `input` says, and ends with the outputs there as "
    "NumPy arrays; a TensorRT session copies its inputs once more, into page-locked memory of its own"
)
_CHECKPOINT, _ENGINE, _COMPILED = "torch:r50", "tensorrt:r50 fp16", "torch-compile-cuda-fp16:r50"  # of the goals
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
        model: replace(
            check_settings(
                *([SIZE], BATCHES, threads, rounds, runs, seconds), callers=1, output=folder / model, overwrite=overwrite
            ),
            checked=((*_second_size(), CHECKED_BATCH),),
        )
        for model in MODELS
    }
    reports: dict[str, Report] = {}
    for model, panoptic in MODELS.items():
        with temporary_folder() as work:
            targets, failed = make_targets(model, panoptic, work, progress)
            report = measure_targets(targets, settings[model], failed, progress=progress, command=command)
        report = replace(
            report, notes=[_compared(len(settings[model].pictures)), _INPUT, *([goals(report)] if model == "r50" else [])]
        )
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
            targets.append(Target(backend, str(made[name]), title, lean_input=True))
        else:
            failed.append(Variant(title, backend, f"{model} {name}", error=reasons[name]))
    return targets, failed


def goals(report: Report) -> str:
    """One line: R50's fp16 engine at batch 1 beside what is expected of it on an H200.

    The time of a variant counts only if its outputs were those of the checkpoint wherever they were compared.
    """
    timed = [item for item in report.measurements if item.batch == 1 and item.session_ms is not None]
    times = {item.variant: item.session_ms.p50 for item in timed if item.session_ms}
    noise = next((item.noise for item in timed if item.noise), None)
    engine, compiled = times.get(_ENGINE), times.get(_COMPILED)
    doubt, doubt_of_compiled = _doubt(report, _ENGINE), _doubt(report, _COMPILED)
    goal = f"(expected of an H200: at most {GOAL_MS} ms, and at least {GOAL_LEAD} times as fast)"
    if doubt is not None:
        return f"the fp16 engine {doubt}, so its times do not count {goal}"
    if engine is None:
        return f"the fp16 engine was not timed at batch 1 {goal}"
    if doubt_of_compiled is not None:
        lead = f"compiled PyTorch {doubt_of_compiled}, so there is no lead"
    elif compiled is None:
        lead = "compiled PyTorch was not timed"
    else:
        lead = f"{compiled / engine:.2f} times as fast as compiled PyTorch"
        if noise and not is_beyond(compiled / engine, noise.session):
            lead += ", which is no difference"
    return f"the fp16 engine takes {engine:.2f} ms at batch 1, {lead} {goal}"


def _doubt(report: Report, variant: str) -> str | None:
    """Why the times of a variant do not count; None when it agreed with the checkpoint everywhere, or was not there."""
    given = {(item.size, item.batch) for item in report.measurements if item.variant == _CHECKPOINT and item.correct}
    for item in report.measurements:
        if item.variant == variant:
            where = f"at {item.size}, batch {item.batch}"
            if item.correct is None or item.error:
                return f"failed {where}"
            if (item.size, item.batch) not in given:  # then it was compared with another variant
                return f"was not compared with the checkpoint {where}"
            if not item.correct:
                return f"disagrees with the checkpoint {where}"
    return None


def _second_size() -> tuple[int, int]:
    """The other way up, where height and width cannot be mixed up unseen. ONNX Runtime's profiles have that size, too."""
    return SIZE[1], SIZE[0]


def _compared(images: int) -> str:
    """What the outputs were compared with, and on what."""
    sizes = " and ".join(f"{height}x{width}" for height, width in (SIZE, _second_size()))
    return _REFERENCE.format(images=images, sizes=sizes)


def _export(checkpoint: Path, precision: str, folder: Path) -> Path:
    from detr_export.engines.source import make_graph

    return make_graph(str(checkpoint), precision, folder, input=UINT8)


def _build(graph: Path) -> Path:
    from detr_export.engines.build import build_engine
    from detr_export.engines.options import EngineOptions
    from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile

    output = graph.with_suffix(".engine")
    shapes = [*((batch, *SIZE) for batch in BATCHES), (CHECKED_BATCH, *_second_size())]
    # The benchmark compares the engine itself, at the sizes that it measures, and a disagreement is a result.
    build_engine(graph, output, EngineOptions(profiles=tuple(EngineProfile(*[shape] * 3) for shape in shapes), verify=False))
    return output


def _as_file_name(text: str) -> str:
    """Lower case, with hyphens in place of everything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
