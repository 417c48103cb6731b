"""The command line of `detr-bench`: it parses, calls and prints. What is measured, and how, is in `speed`.

Annotations stay unquoted here: on Python 3.9 typer does not resolve the strings that `from __future__ import annotations`
makes of them, and every option would lose its name and its help. Heavy imports stay inside the commands, so that `--help`
answers at once.
"""

import datetime
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from detr_export.extras import require_python
from detr_export.runtimes.errors import BackendError, missing_extra
from detr_export.terminal import (
    Commands,
    JsonOption,
    LimitOption,
    OverwriteOption,
    TerminalProgress,
    VersionOption,
    print_error,
    print_json,
    print_result,
    reports_errors,
    run_command_line,
    spell_lists,
)

PROGRAM = "detr-bench"
DEFAULT_COMMAND = "run"
_COMMANDS = (DEFAULT_COMMAND, "gpu", "processors")
_OWN_OPTIONS = ("--help", "--version", "--install-completion", "--show-completion")  # those of no command
_LIST_VALUES = {"--size": re.compile(r"\d+x\d+"), "--batch": re.compile(r"\d+")}  # options that take several values
_PIPE_WIDTH = 200  # columns


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """What was typed, with the command `run` where none is named, and `--size A B` spelled `--size A --size B`."""
    arguments = list(arguments)
    first = 0  # after the options that stand before every command
    while arguments[first : first + 1] and arguments[first].partition("=")[0] == "--limit":
        first += 1 if "=" in arguments[first] else 2
    if arguments[first:] == [] or arguments[first] not in (*_COMMANDS, *_OWN_OPTIONS):
        arguments.insert(first, DEFAULT_COMMAND)
    return spell_lists(arguments, _LIST_VALUES)


class _Commands(Commands):
    """The commands, with one that needs not be named. The shell asks this class as well for what can be typed next."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Where a shell asks for the first word, every command can follow, not only what `run` takes.
        first_word = ctx.resilient_parsing and not args
        return super().parse_args(ctx, list(args) if first_word else spelled_out(args))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        command = self.get_command(ctx, DEFAULT_COMMAND)
        if command is None or not incomplete.startswith("-"):
            return found
        context = command.make_context(DEFAULT_COMMAND, [], parent=ctx, resilient_parsing=True)
        known = {item.value for item in found}
        return [*found, *(item for item in command.shell_complete(context, incomplete) if item.value not in known)]


app = typer.Typer(
    name=PROGRAM,
    cls=_Commands,
    help="Measure models in several backends, fairly. detr-bench TARGET... is short for detr-bench run TARGET...",
    pretty_exceptions_enable=False,
)


ThreadsOption = Annotated[
    Optional[int], typer.Option(help="CPU threads of one run; as many as there are physical cores if left out.")
]
RoundsOption = Annotated[int, typer.Option(help="How many turns each variant gets.")]
RunsOption = Annotated[
    Optional[int], typer.Option(help="How many runs a turn has. This option and --seconds exclude each other.")
]
SecondsOption = Annotated[
    Optional[float], typer.Option(help="How many seconds a turn lasts, with at least one run; 1 if left out.")
]


@app.callback()
def _options(version: VersionOption = False, limit: LimitOption = None) -> None:
    pass


@app.command("run")
@reports_errors
def run_command(
    targets: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[TARGET]...",
            help="What to measure, each BACKEND:MODEL or a path alone. For a checkpoint, BACKEND is torch, torch-compile, "
            "torch-cuda, torch-cuda-fp16, torch-compile-cuda-fp16 or transformers; for an ONNX file ort, ort-cuda, "
            "ort-tensorrt, ort-tensorrt-rtx or openvino; for a TensorRT engine tensorrt. "
            "Without any target, the demo checkpoint is measured in every backend that is installed.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="HxW...",
            help="Image sizes in pixels, as the models get them; the first model's own if left out. Where a model is an "
            "end-to-end file: sizes of the pictures that come in, 480x640 if left out.",
        ),
    ] = None,
    batch: Annotated[Optional[list[str]], typer.Option(metavar="N...", help="Batch sizes; 1 if left out.")] = None,
    threads: ThreadsOption = None,
    rounds: RoundsOption = 7,
    runs: RunsOption = None,
    seconds: SecondsOption = None,
    images: Annotated[Optional[Path], typer.Option(help="A folder of images to use in place of a synthetic one.")] = None,
    accuracy: Annotated[
        Optional[Path], typer.Option(help="A data set. The models are scored on the images of its split val.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="How many images are scored; all if left out.")] = None,
    baseline: Annotated[
        Optional[str],
        typer.Option(
            help="The variant that ratios refer to: a target, or a backend that only one target has; the first if left out."
        ),
    ] = None,
    callers: Annotated[
        Optional[int],
        typer.Option(
            help="Throughput is measured with 1 to this many concurrent callers; with 0 it is not measured. "
            "If left out: the number of cores, at most 4."
        ),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure several sizes and batch sizes around the model's own size.")
    ] = False,
    no_noise: Annotated[
        bool,
        typer.Option(
            "--no-noise",
            help="Do not measure the baseline twice. Then the report cannot say which ratios are too close to 1 to mean "
            "something.",
        ),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Add the time of each operator and each part of the model, for ort targets.")
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Add what TensorRT's compiler makes of each ONNX file: kernels, fused attentions, copies. It takes no GPU.",
        ),
    ] = False,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output",
            "-o",
            help="The folder for the report and its plots. If left out: detr-bench-TIME, or no folder with --json.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput, memory and accuracy of models against each other. Ctrl-C keeps what was measured."""
    _require_bench(("psutil", "rich", "threadpoolctl"))
    from detr_export.benchmarks import run
    from detr_export.benchmarks.speed.settings import parse_batch, parse_size

    # Measure.
    if output is None and not as_json:
        output = Path(f"detr-bench-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    with TerminalProgress("measuring") as progress:
        report = run(
            targets=targets or (),
            sizes=[parse_size(text) for text in size or ()],
            batches=[parse_batch(text) for text in batch or ()],
            threads=threads,
            rounds=rounds,
            runs=runs,
            seconds=seconds,
            images=images,
            accuracy=accuracy,
            limit=limit,
            baseline=baseline,
            callers=callers,
            sweep=sweep,
            profile=profile,
            compiled=compiled,
            output=output,
            overwrite=overwrite,
            noise=not no_noise,
            progress=progress,
            command=[PROGRAM, *sys.argv[1:]],
        )

    # Print what was found, then what went wrong; that decides the exit code.
    if as_json:
        print_json(report.to_dict())
    else:
        _print_tables(report)
        typer.echo(f"{output}  report.json, report.csv, report.md and plots")
    for line in report.problems():
        print_error(BackendError(line))
    if report.method.interrupted:
        raise KeyboardInterrupt
    if report.problems():
        raise typer.Exit(1)


@app.command("gpu")
@reports_errors
def gpu_command(
    rounds: RoundsOption = 7,
    runs: RunsOption = None,
    seconds: SecondsOption = None,
    threads: ThreadsOption = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output", "-o", help="The folder for the reports and plots; benchmarks/results/GPU-DATE if left out."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure R50 and R50-panoptic, with seeded weights, in every runtime that is installed for the GPU.

    Without a GPU this is refused. A runtime that is not installed stands in the report with the reason.
    """
    _require_bench(("psutil", "rich", "threadpoolctl"))
    from detr_export.benchmarks.speed.gpu_preset import run_gpu

    with TerminalProgress("measuring") as progress:
        reports = run_gpu(output, overwrite, threads, rounds, runs, seconds, progress, [PROGRAM, *sys.argv[1:]])
    if as_json:
        print_json([report.to_dict() for report in reports.values()])
    for folder, report in reports.items():
        if not as_json:
            _print_tables(report)
            typer.echo(f"{folder}  report.json, report.csv, report.md and plots")
        for line in report.problems():
            print_error(BackendError(line))
    if any(report.method.interrupted for report in reports.values()):
        raise KeyboardInterrupt
    # A runtime that is not there is no failure; one that fails or gives wrong outputs is.
    if any(item.error or item.correct is False for report in reports.values() for item in report.measurements):
        raise typer.Exit(1)


@app.command("processors")
@reports_errors
def processors_command(
    images: Annotated[Optional[Path], typer.Option(help="A folder of images to use in place of synthetic ones.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each step is timed.")] = 15,
    threads: Annotated[
        Optional[int], typer.Option(help="PyTorch's threads, which transformers uses; PyTorch's own choice if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare and time pre- and post-processing against the slow and fast classes of transformers."""
    _require_bench(("threadpoolctl",))
    from detr_export.benchmarks.speed.processors.run import run_processors
    from detr_export.runtimes.processing.image_paths import iter_image_paths
    from detr_export.runtimes.processing.images import load_image

    loaded = None if images is None else [load_image(path) for path in iter_image_paths(str(images))]
    with TerminalProgress() as progress:
        found = run_processors(loaded, rounds, threads, progress)
    print_result(found, as_json)


def _require_bench(packages: Sequence[str]) -> None:
    """Refuses a Python that is too old, and an installation without the extra `bench`."""
    require_python(3, 10, PROGRAM)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "bench")


def _print_tables(report: Any) -> None:
    from rich.console import Console

    from detr_export.benchmarks.speed.tables import terminal_tables

    # A pipe has no width, and tables that are folded into 80 columns are hard to read.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH)
    console.print(*terminal_tables(report), sep="\n")


def main() -> None:
    """Entry point of `detr-bench`."""
    run_command_line(app, PROGRAM)


if __name__ == "__main__":
    main()
