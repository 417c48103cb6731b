"""One honest benchmark: which file to deploy, and what it costs, against what people would use instead.

Every variant runs in a process of its own, on the same inputs, in rounds that take turns; its outputs are compared before
it is timed. `run` returns a `Report`; the command `detr-bench` prints it.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path

from detr_export.benchmarks.cost.machine_peak import Peaks
from detr_export.benchmarks.speed.agreement import tolerance
from detr_export.benchmarks.speed.calibration import Calibration
from detr_export.benchmarks.speed.environment import describe_environment, ort_has_cuda
from detr_export.benchmarks.speed.findings import Findings
from detr_export.benchmarks.speed.pictures import USUAL_SIZE
from detr_export.benchmarks.speed.report import Method, Report, Variant
from detr_export.benchmarks.speed.runner import Runner
from detr_export.benchmarks.speed.settings import DEFAULT_ROUNDS, Settings, Size, check_settings
from detr_export.benchmarks.speed.statistics import CALIBRATION_TOLERANCE
from detr_export.benchmarks.speed.tables import write_report
from detr_export.benchmarks.speed.targets import Target, check_targets, demo_targets, find_baseline
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.temporary import temporary_folder

_OF_PICTURES = (
    "an end-to-end file takes part, so sizes are those of the pictures that come in: every variant resizes them as its own "
    "settings say, and their detections are compared. The session of an end-to-end file has the processor and "
    "post-processing in it; to compare it with the others, look at the time end to end"
)
_OF_MODELS = (
    "several checkpoints take part, which are different models: each variant's outputs are compared with those of the first "
    "variant of its own checkpoint"
)
_USUAL_SIZE = (800, 1066)  # what DETR's own settings make of the usual picture


def run(
    targets: Sequence[str] = (),
    sizes: Sequence[Size] = (),
    batches: Sequence[int] = (),
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    runs: int | None = None,
    seconds: float | None = None,
    images: str | Path | None = None,
    accuracy: str | Path | None = None,
    limit: int | None = None,
    baseline: str | None = None,
    callers: int | None = None,
    sweep: bool = False,
    profile: bool = False,
    compiled: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    noise: bool = True,
    progress: Progress = SILENT,
    command: Sequence[str] | None = None,
) -> Report:
    """Measures models against each other; Ctrl-C ends it with what was measured so far.

    Args:
        targets: each `BACKEND:MODEL` or a path; without any, the checkpoint `demo` in every backend that is installed.
        sizes: (height, width) that the models get; without any, the first model's own for a picture of 480 x 640. If one
            of the targets is an end-to-end file, it is the size of the pictures, and 480 x 640 without any.
        batches: images in a batch; every size is run with every one. 1 without any.
        threads: of one run; the physical cores when None.
        rounds: turns of each variant, at each size.
        runs: how many runs a turn has; or
        seconds: how long a turn lasts, with at least one run. One second when both are None.
        images: a folder, whose pictures replace the synthetic one.
        accuracy: a COCO folder with a split `val`, on which files and checkpoints are scored.
        limit: how many images are scored; all when None.
        baseline: the variant that ratios refer to, by name, target or backend; the first that opens when None.
        callers: throughput is measured with 1 to that many threads calling at once; 0 leaves it out. When None, as many as
            there are cores, at most 4.
        sweep: sizes and batch sizes around the model's own, in place of `sizes` and `batches`.
        profile: add a table of operators and of the parts of the model, for ONNX files on the CPU.
        compiled: add what TensorRT-RTX makes of each ONNX file, which takes no GPU.
        output: a folder for report.json, report.csv, report.md and the plots; nothing is written when None.
        overwrite: replace a report that is there.
        noise: measure the baseline twice, which shows how far from 1 a ratio must be to mean something. That takes one more
            process.
        progress: what is told of the stages, and of the turns as steps.
        command: what was typed, to be kept in the report.

    Returns:
        The report. What failed for one variant is in it (`Report.problems`), not raised.

    Raises:
        InputError: an argument is out of its range.
        ImageError: the folder holds no images, or one that cannot be read.
        AnnotationError: the COCO folder lacks something.
        OutputError: the output exists or cannot be written.
        BackendError: a package of the extra `bench` is not installed; or no target could be opened. Then nothing is written.
    """
    settings = check_settings(
        sizes,
        batches,
        threads,
        rounds,
        runs,
        seconds,
        images,
        accuracy,
        limit,
        callers,
        sweep,
        profile,
        compiled,
        output,
        overwrite,
        noise,
    )
    with temporary_folder() as folder:
        if targets:
            chosen, unreadable = check_targets(targets, ort_has_cuda())
        else:
            progress.stage("exporting demo")
            chosen, unreadable = _export_demo(folder), []
        failed = [Variant(text, "unknown", text, error=error) for text, error in unreadable]
        based_on = None if baseline is None else find_baseline(baseline, chosen)
        report = measure_targets(chosen, settings, failed, based_on, progress, command)
    if report.empty and not report.method.interrupted:
        raise BackendError("nothing was measured: " + "; ".join(report.problems()))
    if output is not None:
        write_report(report, Path(output))
    return report


def measure_targets(
    targets: Sequence[Target],
    settings: Settings,
    failed: Sequence[Variant] = (),
    baseline: Target | None = None,
    progress: Progress = SILENT,
    command: Sequence[str] | None = None,
) -> Report:
    """Measures targets against each other; Ctrl-C ends it with what was measured so far.

    Args:
        targets: with names that differ. The others of its checkpoint are compared with the outputs of the first one.
        settings: what is measured, and how much.
        failed: variants that failed already, for the report.
        baseline: the target that ratios refer to; the first one that opens when None.
        progress, command: as in `run`.
    """
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    threads, pace = settings.threads, settings.pace
    with contextlib.ExitStack() as stack:
        calibration = stack.enter_context(contextlib.closing(Calibration(threads)))
        runner = Runner(targets, threads, tolerance, calibration.measure, max_batch=settings.max_batch, progress=progress)
        stack.enter_context(runner)
        # The CPU's peak before and after, for the better of the two: on a shared machine one moment may be a slow one.
        progress.stage("measuring the machine")
        peaks = Peaks(threads)
        if targets:
            peaks.measure("cpu", "fp32")
        findings = Findings(runner, baseline, peaks)
        try:
            runner.open()
            findings.open_baseline_again(settings.noise, pace.rounds)
            own = next((item.opened.own_size for item in runner.able if item.opened), _USUAL_SIZE)
            own = USUAL_SIZE if runner.of_pictures else own
            runner.measure(settings.workloads(own), pace)
            runner.close()
            # What follows is not timed against anything, so the processes of the variants have ended.
            progress.stage("counting the cost")
            findings.add_costs()
            if settings.profile:
                progress.stage("profiling")
                findings.add_profiles(threads)
            if settings.compiled:
                findings.add_compiled(progress)
            if settings.data is not None:
                findings.add_scores(settings.data, settings.limit, threads, progress)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        runner.close()
        measurements = findings.measurements()
        return Report(
            started=started,
            command=None if command is None else list(command),
            environment=describe_environment(threads),
            method=Method(
                rounds=pace.rounds,
                warmup_runs=pace.warmup_runs,
                baseline=findings.baseline,
                calibration_tolerance=CALIBRATION_TOLERANCE,
                interrupted=interrupted,
                baseline_again=findings.baseline_again,
                why_no_noise=findings.why_no_noise(measurements),
            ),
            variants=[*findings.variants(), *failed],
            measurements=measurements,
            accuracy=findings.accuracy,
            profiles=findings.profiles,
            compiled=findings.compiled,
            errors=findings.errors,
            notes=[
                *([_OF_PICTURES] if runner.of_pictures else []),
                *([_OF_MODELS] if len(runner.checkpoints) > 1 else []),
            ],
        )


def _export_demo(folder: Path) -> list[Target]:
    """The checkpoint that comes with the package, exported into a folder, in all backends."""
    from detr_export.checkpoints import reading
    from detr_export.graphs.export import ExportOptions, export_onnx

    file = folder / f"{reading.DEMO}.onnx"
    # Its outputs are compared with the checkpoint's anyway, at the sizes that are measured.
    export_onnx(reading.load_checkpoint(reading.DEMO), file, ExportOptions(verify=False))
    return demo_targets(reading.DEMO, reading.PACKAGED[reading.DEMO], file, ort_has_cuda())
