"""What comes of a runner's raw results: measurements in numbers, with their costs, scores and profiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_export.benchmarks.accuracy.scores import SCORED, Annotated, score
from detr_export.benchmarks.cost.machine_peak import Peaks
from detr_export.benchmarks.speed.report import Accuracy, Measurement, Variant, Work
from detr_export.benchmarks.speed.runner import Contestant, Raw, Runner
from detr_export.benchmarks.speed.statistics import (
    LEAST_ROUNDS_FOR_NOISE,
    Timing,
    mark_disturbed,
    noise_of,
    pooled,
    pooled_stages,
    ratio_to,
)
from detr_export.benchmarks.speed.targets import BACKENDS, Target, file_bytes
from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.progress import Progress

if TYPE_CHECKING:
    from detr_export.benchmarks.cost.model import Cost


class Findings:
    """What is known so far.

    Args:
        runner: has measured, or still measures.
        baseline: the target that ratios refer to; the first one that opens when None.
        peaks: of the machine.

    Attributes:
        baseline_again: the name of the variant that is the baseline's target once more; None when there is none.
    """

    def __init__(self, runner: Runner, baseline: Target | None, peaks: Peaks) -> None:
        self.accuracy: list[Accuracy] = []
        self.profiles: list[Mapping[str, Any]] = []
        self.compiled: list[Mapping[str, Any]] = []
        self.errors: list[str] = []
        self.baseline_again: str | None = None
        self._why_no_noise: str | None = None
        self._runner, self._asked, self._peaks = runner, baseline, peaks
        self._costs: dict[tuple[str, tuple[int, int, int]], Cost] = {}  # by checkpoint and workload

    @property
    def baseline(self) -> str | None:
        """The name of the variant that ratios refer to."""
        if self._asked is not None:
            return self._asked.name
        return next((item.target.name for item in self._runner.contestants if item.opened and item.target.timed), None)

    def open_baseline_again(self, wanted: bool, rounds: int) -> None:
        """Opens the baseline's target once more, for the noise; not if another variant is that already.

        Args:
            wanted: whether the noise is asked for.
            rounds: how many are asked for.
        """
        able = self._runner.able
        baseline = next((item.target for item in able if item.target.name == self.baseline), None)
        if not wanted:
            self._why_no_noise = "it was not asked for"
        elif rounds < LEAST_ROUNDS_FOR_NOISE:
            self._why_no_noise = f"it takes at least {LEAST_ROUNDS_FOR_NOISE} rounds"
        elif baseline is None:
            self._why_no_noise = "the baseline could not be opened"
        else:
            again = next((item.target for item in able if item.target.is_same_as(baseline)), None)
            if again is None:
                again = replace(baseline, name=f"{baseline.name} (again)", again=True)
                self._runner.add(again)
            self.baseline_again = again.name

    def why_no_noise(self, measurements: Sequence[Measurement]) -> str | None:
        """Why no measurement has its noise; None when one has."""
        if any(item.noise for item in measurements):
            return None
        return self._why_no_noise or f"fewer than {LEAST_ROUNDS_FOR_NOISE} rounds of the baseline's two variants count"

    def variants(self) -> list[Variant]:
        """What is known of each model and its process."""
        return [_variant(contestant) for contestant in self._runner.contestants]

    def add_costs(self) -> None:
        """Counts the work of each workload, and measures the peaks that it is compared with.

        The count is that of the checkpoint's first ONNX file that was right: all variants that agree with it compute the
        same. Where sizes are those of the pictures, only end-to-end files are counted.
        """
        for raw in self._right():
            onnx = self._contestant(raw.name).target.onnx
            if self._runner.of_pictures and not self._is_end_to_end(raw.name):
                continue  # what it runs has another size
            if onnx is None or self._key(raw) in self._costs:
                continue
            with self._noting(f"cost of {raw.name}"):
                from detr_export.benchmarks.cost.model import model_cost

                self._costs[self._key(raw)] = model_cost(onnx, *raw.workload.key)
        for device, precision in sorted({self._place(raw.name) for raw in self._right() if self._key(raw) in self._costs}):
            self._peaks.measure(device, precision)

    def add_profiles(self, threads: int) -> None:
        """Profiles the ONNX files on the CPU, with every workload for which they were right."""
        for raw in self._right():
            target = self._contestant(raw.name).target
            if target.backend == "ort" and not target.again:
                with self._noting(f"profile of {raw.name}"):
                    from detr_export.benchmarks.cost.profiling import profile_ort

                    assert target.onnx is not None
                    found = profile_ort(target.onnx, *raw.workload.key, threads, of_picture=self._runner.of_pictures)
                    self.profiles.append({**found, "variant": raw.name})

    def add_compiled(self, progress: Progress) -> None:
        """Compiles each ONNX file once, whatever runs it."""
        files: dict[Path, str] = {}
        for contestant in self._runner.able:
            if contestant.target.onnx is not None:
                files.setdefault(contestant.target.onnx, contestant.target.name)
        for file, name in files.items():
            progress.stage(f"compiling {file}")
            with self._noting(f"compiling {name}"):
                from detr_export.benchmarks.cost.compiled import compiled_kernels

                for kernels, part in zip(compiled_kernels(file), ("", ", mask head"), strict=False):
                    self.compiled.append({**kernels, "variant": name + part})

    def add_scores(self, data: Annotated, limit: int | None, threads: int, progress: Progress) -> None:
        """Scores the variants that a `Predictor` can open."""
        for contestant in self._runner.able:
            if contestant.target.backend in SCORED and not contestant.target.again:
                progress.stage(f"scoring {contestant.target.name}")
                with self._noting(f"accuracy of {contestant.target.name}"):
                    masks = contestant.opened is not None and contestant.opened.draws_masks
                    self.accuracy.append(score(contestant.target, data, masks, limit, threads))

    def measurements(self) -> list[Measurement]:
        """The results in numbers. Which turns were disturbed shows only now, against all calibrations of the run."""
        # Mark the disturbed turns first: they count neither for a variant nor for the baseline of its ratio.
        raws = self._runner.results
        marked = mark_disturbed([raw.turns for raw in raws])
        turns = {(raw.name, raw.workload.key): own for raw, own in zip(raws, marked, strict=True)}
        found = []
        for raw in raws:
            own = turns[raw.name, raw.workload.key]
            theirs, again = (turns.get((name or "", raw.workload.key), []) for name in (self.baseline, self.baseline_again))
            noise = None if raw.name == self.baseline else noise_of(again, theirs)
            session = pooled(own, "session_ms")
            found.append(
                Measurement(
                    variant=raw.name,
                    height=raw.workload.height,
                    width=raw.workload.width,
                    batch=raw.workload.batch,
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
                    ratio_to_baseline=None if raw.error else ratio_to(own, theirs, noise),
                    work=self._work(raw, session),
                    error=raw.error,
                    turns=own,
                )
            )
        return found

    def _work(self, raw: Raw, session: Timing | None) -> Work | None:
        """The rate of the session, and its share of what the device reaches in this precision."""
        cost = self._costs.get(self._key(raw))
        if cost is None or session is None or (self._runner.of_pictures and not self._is_end_to_end(raw.name)):
            return None
        rate, peak = cost.gflop_per_s(session.p50), self._peaks.of(*self._place(raw.name))
        return Work(cost.gmac, cost.moved_bytes, rate, None if peak is None else rate / peak)

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Keeps an error of the block as a line of the report; the rest goes on."""
        try:
            yield
        except DetrError as error:
            self.errors.append(f"{what}: {error}")

    def _right(self) -> list[Raw]:
        return [raw for raw in self._runner.results if raw.correct and raw.error is None]

    def _key(self, raw: Raw) -> tuple[str, tuple[int, int, int]]:
        return self._runner.checkpoint_of(self._contestant(raw.name)), raw.workload.key

    def _contestant(self, name: str) -> Contestant:
        return next(item for item in self._runner.contestants if item.target.name == name)

    def _is_end_to_end(self, name: str) -> bool:
        opened = self._contestant(name).opened
        return opened is not None and opened.end_to_end

    def _place(self, name: str) -> tuple[str, str]:
        """The device and the precision that a variant computes in."""
        contestant = self._contestant(name)
        return BACKENDS[contestant.target.backend].device, contestant.opened.precision if contestant.opened else "fp32"


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
        input=(opened.input or None) if opened else None,
        checkpoint_sha256=(opened.checkpoint or None) if opened else None,
    )


def _file_bytes(source: str) -> int | None:
    from detr_export.checkpoints import reading

    return file_bytes(str(reading.PACKAGED.get(source, source)))
