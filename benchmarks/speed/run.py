"""One honest benchmark: which file to deploy, and what it costs, against what people would use instead.

Every variant runs in a process of its own, on the same inputs, in rounds that take turns; its outputs are compared before
it is timed. `run` returns a `Report`; the command `detr-bench` prints it.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.benchmarks.accuracy.scores import SCORED, find_annotated, score
from detr_export.benchmarks.cost.machine_peak import gemm_peak_gflop_per_s
from detr_export.benchmarks.speed.calibration import Calibration
from detr_export.benchmarks.speed.environment import available_cores, checked_threads, describe_environment, ort_has_cuda
from detr_export.benchmarks.speed.report import Accuracy, Cost, Measurement, Method, Report, Variant
from detr_export.benchmarks.speed.runner import Case, Contestant, Pace, Progress, Raw, Runner, steps_of_a_case
from detr_export.benchmarks.speed.statistics import CALIBRATION_TOLERANCE, mark_disturbed, pooled, pooled_stages, ratio_to
from detr_export.benchmarks.speed.tables import require_report_folder, write_report
from detr_export.benchmarks.speed.targets import Target, check_targets, demo_targets, file_bytes, find_baseline
from detr_export.runtimes.errors import DetrError, InputError, missing_extra
from detr_export.runtimes.processing.images import iter_image_paths, load_image

DEFAULT_ROUNDS = 7
DEFAULT_SECONDS = 1.0  # of a turn
_WARMUP_RUNS = 1  # a turn follows those of the other variants, which have emptied the caches
_CALLERS = 4  # by default not more, on however many cores
_DEFAULT_SIZE = (800, 1066)  # what DETR's own settings make of the usual picture
_SWEEP_SCALES = (0.5, 0.75, 1.0, 1.25)  # of the model's own size
_SWEEP_BATCHES = (1, 2, 4)
_SWEEP_STEP = 32  # pixels; the backbone's stride
_MOST_BATCHES = 8  # different ones, of a folder of images
_PICTURE = (480, 640)  # height and width of a synthetic one

Size = tuple[int, int]  # height, width in pixels


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
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, note, total: None,
    command: Sequence[str] | None = None,
) -> Report:
    """Measures models against each other; Ctrl-C ends it with what was measured so far.

    Args:
        targets: each `BACKEND:MODEL` or a path; without any, the checkpoint `demo` in every backend that is installed.
        sizes: (height, width) that the models get; without any, the first model's own for a picture of 480 x 640.
        batches: images in a batch; every size is run with every one. 1 without any.
        threads: of one run; the physical cores when None.
        rounds: turns of each variant, at each size.
        runs: of each turn; or
        seconds: how long a turn runs, at least once. One second when both are None.
        images: a folder, whose pictures replace the synthetic one.
        accuracy: a COCO folder with a split `val`, on which files and checkpoints are scored.
        limit: score that many images; all when None.
        baseline: the variant that ratios refer to, by name, target or backend; the first that opens when None.
        callers: throughput is measured with 1 to that many threads calling at once; 0 leaves it out. When None, as many as
            there are cores, at most 4.
        sweep: sizes and batch sizes around the model's own, in place of `sizes` and `batches`.
        profile: add a table of operators and of the parts of the model, for ONNX files on the CPU.
        output: a folder for report.json, report.csv, report.md and the plots; nothing is written when None.
        overwrite: replace a report that is there.
        progress: called with the steps done, what is going on, and the steps in all.
        command: to be kept in the report.

    Returns:
        The report. What failed for one variant is in it (`Report.problems`), not raised.

    Raises:
        InputError: an argument is out of its range.
        ImageError: the folder holds no images, or one that cannot be read.
        AnnotationError: the COCO folder lacks something.
        OutputError: the output exists or cannot be written.
        BackendError: a package of the extra `bench` is not installed.
    """
    threads = checked_threads(threads)
    pace = _pace(rounds, runs, seconds, min(_CALLERS, available_cores()) if callers is None else callers)
    check_cases(sizes, batches, sweep)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")
    if output is not None:
        require_report_folder(Path(output), overwrite)
        if importlib.util.find_spec("matplotlib") is None:
            raise missing_extra("matplotlib", "bench")
    data = None if accuracy is None else find_annotated(accuracy)
    pictures = _load_pictures(images, max(batches, default=max(_SWEEP_BATCHES) if sweep else 1))

    from detr_export.verification.tolerances import TOLERANCES

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        if targets:
            chosen, unreadable = check_targets(targets, ort_has_cuda())
        else:
            progress(0, "exporting demo", 1)
            chosen, unreadable = _export_demo(stack), []
        based_on = None if baseline is None else find_baseline(baseline, chosen)
        calibration = stack.enter_context(contextlib.closing(Calibration(threads)))
        constants = {name: row.constant for name, row in TOLERANCES.items()}
        runner = stack.enter_context(Runner(chosen, threads, constants.__getitem__, calibration.measure))
        progress(0, "measuring the machine", 1)
        # Before and after, for the better of the two: on a shared machine one moment may be a slow one.
        findings = _Findings(runner, based_on, gemm_peak_gflop_per_s(threads) if chosen else 0.0)
        try:
            _measure(runner, sizes, batches, sweep, pictures, pace, progress)
            runner.close()
            progress(1, "counting the cost", 1)
            findings.add_costs(threads)
            if profile:
                progress(1, "profiling", 1)
                findings.add_profiles(threads)
            if data is not None:
                for contestant in runner.able:
                    if contestant.target.backend in SCORED:
                        progress(1, f"scoring {contestant.target.name}", 1)
                        with findings.noting(f"accuracy of {contestant.target.name}"):
                            masks = contestant.opened is not None and contestant.opened.draws_masks
                            findings.accuracy.append(score(contestant.target, data, masks, limit, threads))
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        runner.close()
        name = findings.baseline
        report = Report(
            started=started,
            command=None if command is None else list(command),
            environment=describe_environment(threads),
            method=Method(rounds, _WARMUP_RUNS, name, CALIBRATION_TOLERANCE, interrupted),
            variants=[
                *(_variant(contestant) for contestant in runner.contestants),
                *(Variant(text, "unknown", text, error=error) for text, error in unreadable),
            ],
            measurements=findings.measurements(),
            accuracy=findings.accuracy,
            profiles=findings.profiles,
            errors=findings.errors,
        )
    if output is not None:
        write_report(report, Path(output))
    return report


def check_cases(sizes: Sequence[Size], batches: Sequence[int], sweep: bool) -> None:
    """Refuses sizes that are not positive, and sizes beside a sweep.

    Raises:
        InputError: says which.
    """
    for height, width in sizes:
        if height < 1 or width < 1:
            raise InputError(f"size is {height}x{width}; expected at least 1x1")
    for batch in batches:
        if batch < 1:
            raise InputError(f"batch is {batch}; expected at least 1")
    if sweep and (sizes or batches):
        raise InputError("a sweep chooses its own sizes and batch sizes; leave either the sweep or --size and --batch out")


def parse_size(text: str) -> Size:
    """(height, width) of `HEIGHTxWIDTH`.

    Raises:
        InputError: it is something else.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InputError(f"size is {text!r}; expected HEIGHTxWIDTH in pixels, such as 800x1066")
    return int(height), int(width)


def parse_batch(text: str) -> int:
    """Images in a batch.

    Raises:
        InputError: it is no positive number.
    """
    if not (text.isdecimal() and int(text)):
        raise InputError(f"batch is {text!r}; expected a number of images, at least 1")
    return int(text)


def sweep_cases(own: Size) -> list[tuple[int, int, int]]:
    """(height, width, batch) of a sweep: sizes around the model's own one image at a time, then its own in batches."""
    sizes = [
        tuple(max(_SWEEP_STEP, round(side * scale / _SWEEP_STEP) * _SWEEP_STEP) for side in own) for scale in _SWEEP_SCALES
    ]
    cases = [(height, width, 1) for height, width in sizes]
    height, width = sizes[_SWEEP_SCALES.index(1.0)]
    return list(dict.fromkeys([*cases, *((height, width, batch) for batch in _SWEEP_BATCHES)]))


def make_batches(pictures: Sequence[np.ndarray], batch: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """Batches of `batch` pictures each, which begin again with the first picture where the last batch is not full."""
    count = min(_MOST_BATCHES, -(-len(pictures) // batch))
    return tuple(
        tuple(pictures[(start + index) % len(pictures)] for index in range(batch))
        for start in range(0, count * batch, batch)
    )


def synthetic_picture(seed: int = 0) -> np.ndarray:
    """A picture with structure at several scales, (480, 640, 3) uint8, the same for the same seed."""
    generator = np.random.default_rng(seed)
    height, width = _PICTURE
    picture = generator.normal(128, 15, (height, width, 3))
    for cells in (2, 5, 11, 23):
        rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
        picture += generator.normal(0, 30, (cells, cells, 3))[rows[:, None], columns]
    return picture.round().clip(0, 255).astype(np.uint8)


class _Findings:
    """What comes of a runner's raw results, as far as it has got."""

    def __init__(self, runner: Runner, baseline: Target | None, gemm_peak_before: float) -> None:
        self.accuracy: list[Accuracy] = []
        self.profiles: list[Mapping[str, Any]] = []
        self.errors: list[str] = []
        self._runner, self._asked = runner, baseline
        self._gmac_and_bytes: dict[tuple[int, int, int], tuple[float, int]] = {}
        self._gemm_peak_before, self._gemm_peak_after = gemm_peak_before, 0.0

    @property
    def baseline(self) -> str | None:
        """The name of the variant that ratios refer to."""
        if self._asked is not None:
            return self._asked.name
        return next((item.target.name for item in self._runner.contestants if item.opened), None)

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Keeps an error of the block as a line of the report; the rest goes on."""
        try:
            yield
        except DetrError as error:
            self.errors.append(f"{what}: {error}")

    def add_costs(self, threads: int) -> None:
        """Counts each size from the graph of the first ONNX file that was right at it: all that agree compute the same."""
        for raw in self._right():
            onnx = self._target(raw.name).onnx
            if onnx is None or _key(raw.case) in self._gmac_and_bytes:
                continue
            with self.noting(f"cost of {raw.name}"):
                from detr_export.benchmarks.cost.model import model_cost

                cost = model_cost(onnx, *_key(raw.case))
                if not self._gemm_peak_after:
                    self._gemm_peak_after = gemm_peak_gflop_per_s(threads)
                self._gmac_and_bytes[_key(raw.case)] = (cost.gmac, cost.moved_bytes)

    def add_profiles(self, threads: int) -> None:
        """Profiles the ONNX files at every size at which they were right."""
        for raw in self._right():
            target = self._target(raw.name)
            if target.backend == "ort":
                with self.noting(f"profile of {raw.name}"):
                    from detr_export.benchmarks.cost.profiling import profile_ort

                    assert target.onnx is not None
                    found = profile_ort(target.onnx, *_key(raw.case), threads)
                    self.profiles.append({**found, "variant": raw.name})

    def measurements(self) -> list[Measurement]:
        """The results in numbers; which turns were disturbed shows only now, against all calibrations of the run."""
        raws = self._runner.results
        marked = mark_disturbed([raw.turns for raw in raws])
        turns = {(raw.name, _key(raw.case)): own for raw, own in zip(raws, marked, strict=True)}
        found = []
        for raw in raws:
            key = _key(raw.case)
            own = turns[raw.name, key]
            theirs = turns.get((self.baseline or "", key), [])
            session = pooled(own, "session_ms")
            cost = None
            if session is not None and key in self._gmac_and_bytes:
                gmac, moved_bytes = self._gmac_and_bytes[key]
                rate = 2 * gmac / (session.p50 / 1e3)
                cost = Cost(gmac, moved_bytes, rate, rate / max(self._gemm_peak_before, self._gemm_peak_after))
            found.append(
                Measurement(
                    variant=raw.name,
                    height=raw.case.height,
                    width=raw.case.width,
                    batch=raw.case.batch,
                    correct=raw.correct,
                    largest_difference=raw.largest_difference,
                    tolerance=raw.tolerance,
                    rounds=len(own),
                    disturbed_rounds=sum(turn.disturbed for turn in own),
                    preprocess_ms=pooled(own, "preprocess_ms"),
                    session_ms=session,
                    postprocess_ms=pooled(own, "postprocess_ms"),
                    end_to_end_ms=pooled(own, "end_to_end_ms"),
                    stages_ms=pooled_stages(own),
                    images_per_second=raw.images_per_second,
                    ratio_to_baseline=None if raw.error else ratio_to(own, theirs),
                    cost=cost,
                    error=raw.error,
                    turns=own,
                )
            )
        return found

    def _right(self) -> list[Raw]:
        return [raw for raw in self._runner.results if raw.correct and raw.error is None]

    def _target(self, name: str) -> Target:
        return next(item.target for item in self._runner.contestants if item.target.name == name)


def _measure(
    runner: Runner,
    sizes: Sequence[Size],
    batches: Sequence[int],
    sweep: bool,
    pictures: Sequence[np.ndarray],
    pace: Pace,
    progress: Progress,
) -> None:
    step, expect = _counter(progress)
    expect(len(runner.contestants))
    runner.open(step)
    if not runner.able:
        return
    own = next((item.opened.own_size for item in runner.able if item.opened), _DEFAULT_SIZE)
    wanted = sweep_cases(own) if sweep else [(*size, batch) for size in sizes or [own] for batch in batches or [1]]
    expect(len(wanted) * len(runner.able) * steps_of_a_case(pace))
    for height, width, batch in dict.fromkeys(wanted):
        runner.measure(Case(height, width, batch, make_batches(pictures, batch)), pace, step)


def _counter(progress: Progress) -> tuple[Callable[[str], None], Callable[[int], None]]:
    """Two functions: one that reports a step that begins, one that says how many more there will be."""
    done = total = 0

    def step(note: str) -> None:
        nonlocal done
        progress(done, note, max(total, done + 1))
        done += 1

    def expect(more: int) -> None:
        nonlocal total
        total += more

    return step, expect


def _pace(rounds: int, runs: int | None, seconds: float | None, callers: int) -> Pace:
    if runs is not None and seconds is not None:
        raise InputError("a turn has either a number of runs or a number of seconds; leave --runs or --seconds out")
    for name, value, least in (("rounds", rounds, 1), ("runs", runs, 1), ("callers", callers, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"seconds is {seconds:g}; expected more than 0")
    if runs is None and seconds is None:
        seconds = DEFAULT_SECONDS
    # A number of runs is asked for where time matters: then one run of each caller is enough.
    return Pace(rounds, _WARMUP_RUNS, runs, seconds, callers, seconds or 0.0)


def _load_pictures(images: str | Path | None, batch: int) -> list[np.ndarray]:
    if images is None:
        return [synthetic_picture(seed) for seed in range(batch)]
    paths = iter_image_paths(str(images))
    wanted = min(len(paths), _MOST_BATCHES * batch)
    return [np.asarray(load_image(paths[index * len(paths) // wanted])) for index in range(wanted)]


def _export_demo(stack: contextlib.ExitStack) -> list[Target]:
    """The checkpoint that comes with the package, exported into a folder that goes with the stack."""
    from detr_export.checkpoints import reading as checkpoint
    from detr_export.graphs.export import ExportOptions, export_onnx

    file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detr-bench-"))) / f"{checkpoint.DEMO}.onnx"
    # Its outputs are compared with the checkpoint's anyway, at the sizes that are measured.
    export_onnx(checkpoint.load_checkpoint(checkpoint.DEMO), file, ExportOptions(verify=False))
    return demo_targets(checkpoint.DEMO, checkpoint.DEMO_DIRECTORY, file, ort_has_cuda())


def _variant(contestant: Contestant) -> Variant:
    target, opened = contestant.target, contestant.opened
    memory = contestant.process.memory if contestant.process else None
    return Variant(
        name=target.name,
        backend=target.backend,
        target=target.source,
        precision=opened.precision if opened else None,
        version=opened.version if opened else None,
        file_bytes=_file_bytes(target.source),
        load_s=opened.load_s if opened else None,
        first_inference_ms=contestant.first_inference_ms,
        peak_resident_bytes=memory.peak_resident_bytes if memory else None,
        device_memory_bytes=memory.device_bytes if memory else None,
        error=contestant.error,
    )


def _file_bytes(source: str) -> int | None:
    from detr_export.checkpoints import reading as checkpoint

    return file_bytes(str(checkpoint.DEMO_DIRECTORY) if source == checkpoint.DEMO else source)


def _key(case: Case) -> tuple[int, int, int]:
    return case.height, case.width, case.batch
