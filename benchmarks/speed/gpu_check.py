"""What a GPU makes of DETR with everything that is installed: latency, throughput, memory and parity of each runtime.

    python -m detr_export.benchmarks.speed.gpu_check [--quick] [--output DIR]

R50 and R50-panoptic with seeded weights at 800x1066, batch 1 and 8, through PyTorch (eager, and compiled with CUDA graphs),
ONNX Runtime (CUDA, TensorRT, TensorRT-RTX) and TensorRT itself. A time is that of one call with arrays in host memory and
the outputs back there, after warming up; a runtime that is not installed or fails is reported with its reason. Each is
compared with the checkpoint in PyTorch on the CPU. Writes DIR/<gpu>-<date>.json, to be committed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_export import coco
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import DetrConfig
from detr_export.engines.source import make_graph
from detr_export.graphs.description import describe
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.doctor import diagnose
from detr_export.runtimes.errors import DetrError, first_line
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.session import Session
from detr_export.seeding import seed_weights
from detr_export.verification.comparison import Case, make_inputs

HEIGHT, WIDTH = 800, 1066
MODELS = ("r50", "r50-panoptic")
BATCHES = (1, 8)
WARM_UP, RUNS = 20, 200
QUICK_WARM_UP, QUICK_RUNS = 3, 10
# What is asked of an H200: a fp16 engine at batch 1, and its lead over compiled PyTorch.
TARGET_MS, TARGET_LEAD = 1.5, 1.3
_MIB = 1 << 20

Opener = Callable[[], Session]


@dataclass(frozen=True)
class Measurement:
    """One runtime on one model and batch."""

    model: str
    runtime: str
    batch: int
    p50_ms: float | None = None  # of one call
    p99_ms: float | None = None
    images_per_s: float | None = None
    memory_mib: float | None = None  # of the GPU, opened and run, as the driver counts it
    max_abs_diff: Mapping[str, float] | None = None  # to the checkpoint on the CPU, by output
    error: str | None = None  # why there are no numbers


class AutocastSession(TorchSession):
    """PyTorch in half precision, where its autocast thinks it safe."""

    def __init__(self, checkpoint: Path, compiled: bool) -> None:
        loaded = load_checkpoint(checkpoint)
        model: Any = DeployedModel(load_model(loaded))
        super().__init__(model, describe(loaded), loaded.config.num_channels, "cuda")
        if compiled:
            self._model = torch.compile(model, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.autocast("cuda", torch.float16):
            outputs = super()._run(inputs)
        return {name: array.astype(np.float32) for name, array in outputs.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything and writes the file; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs, to see whether everything works")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results", help="folder of the JSON file")
    options = parser.parse_args(arguments)
    try:
        gpu = find_gpu()
    except DetrError as error:
        print(f"error: there is no GPU to check: {error}", file=sys.stderr)
        return 1
    warm_up, runs = (QUICK_WARM_UP, QUICK_RUNS) if options.quick else (WARM_UP, RUNS)
    measurements: list[Measurement] = []
    file = options.output / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}-{datetime.date.today()}.json"
    with tempfile.TemporaryDirectory(prefix="detr-export-") as folder:
        for model in MODELS:
            checkpoint = seeded_checkpoint(Path(folder) / model, model)
            for measured in check_model(model, checkpoint, Path(folder), warm_up, runs):
                measurements.append(measured)
                print(line(measured), flush=True)
                write_results(file, gpu, measurements, warm_up, runs)  # what there is, should the machine be taken away
    print(file)
    return 0


def find_gpu() -> str:
    """Its name.

    Raises:
        BackendError: there is none.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cuda_opening.open_device().name


def seeded_checkpoint(folder: Path, model: str) -> Path:
    """Writes R50 with seeded weights, which take as long as trained ones."""
    panoptic = model.endswith("panoptic")
    kind = DetrForSegmentation if panoptic else DetrForObjectDetection
    labels = coco.id2label(coco.PANOPTIC_LABELS if panoptic else coco.DETECTION_LABELS)
    network = kind(DetrConfig(use_pretrained_backbone=False, id2label=labels))
    seed_weights(network, 0)
    network.save_pretrained(folder, DetrImageProcessor(format="coco_panoptic" if panoptic else "coco_detection"))
    return folder


def check_model(model: str, checkpoint: Path, folder: Path, warm_up: int, runs: int) -> Iterator[Measurement]:
    """Every runtime at every batch."""
    work = folder / f"{model}-files"
    work.mkdir()
    inputs = {batch: make_inputs(Case(HEIGHT, WIDTH, ((HEIGHT, WIDTH),) * batch), 3, True, batch) for batch in BATCHES}
    with TorchSession.open(checkpoint) as reference:
        expected = {batch: reference.run(arrays) for batch, arrays in inputs.items()}
    for runtime, opener in runtimes(checkpoint, work).items():
        for batch in BATCHES:
            yield measure(model, runtime, opener, inputs[batch], expected[batch], warm_up, runs)


def runtimes(checkpoint: Path, folder: Path) -> dict[str, Opener]:
    """All by name; whether they can be opened is found out by opening them."""

    def graph(step: str) -> Path:
        return make_graph(str(checkpoint), step, folder)

    def engine(step: str) -> Session:
        from detr_export.engines.build import build_engine
        from detr_export.engines.options import EngineOptions
        from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

        output = folder / f"{step}.engine"
        if not output.exists():
            profiles = tuple(EngineProfile((b, HEIGHT, WIDTH), (b, HEIGHT, WIDTH), (b, HEIGHT, WIDTH)) for b in BATCHES)
            # Its comparison is made here, and a disagreement is a result.
            build_engine(graph(step), output, EngineOptions(profiles=profiles, verify=False))
        return TensorRTSession(output, contexts=1)

    return {
        "torch fp32": lambda: TorchSession.open(checkpoint, "cuda"),
        "torch fp16": lambda: AutocastSession(checkpoint, compiled=False),
        "torch.compile fp16": lambda: AutocastSession(checkpoint, compiled=True),
        "ORT CUDA fp32": lambda: OrtSession(graph("fp32"), "cuda"),
        "ORT CUDA fp16": lambda: OrtSession(graph("fp16"), "cuda"),
        "ORT TensorRT fp16": lambda: OrtSession(graph("fp16"), "tensorrt", max_batch=max(BATCHES)),
        "TensorRT-RTX fp32": lambda: OrtSession(graph("fp32"), "tensorrt-rtx", max_batch=max(BATCHES)),
        "TensorRT-RTX fp16": lambda: OrtSession(graph("fp16"), "tensorrt-rtx", max_batch=max(BATCHES)),
        "TensorRT fp32": lambda: engine("fp32"),
        "TensorRT fp16": lambda: engine("fp16"),
    }


def measure(
    model: str,
    runtime: str,
    opener: Opener,
    inputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    warm_up: int,
    runs: int,
) -> Measurement:
    """Opens a runtime, compares it and times it; what it raises is the result then."""
    batch = next(iter(inputs.values())).shape[0]
    free = _free_mib()
    try:
        with contextlib.closing(opener()) as session:
            given = session.run(inputs)
            for _ in range(warm_up):
                session.run(inputs)
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                session.run(inputs)
                seconds.append(time.perf_counter() - start)
            left = _free_mib()
    except DetrError as error:
        return Measurement(model, runtime, batch, error=str(error))
    except Exception as error:  # of a library; the others are to be measured all the same
        return Measurement(model, runtime, batch, error=f"{type(error).__name__}: {first_line(error)}")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    p50, p99 = (float(np.percentile(seconds, share)) for share in (50, 99))
    return Measurement(
        model,
        runtime,
        batch,
        p50_ms=1e3 * p50,
        p99_ms=1e3 * p99,
        images_per_s=batch / p50,
        memory_mib=None if free is None or left is None else free - left,
        max_abs_diff={name: float(np.abs(given[name].astype(np.float64) - array).max()) for name, array in expected.items()},
    )


def targets(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """How the fp16 engine stands to what is asked of an H200; None for what was not measured."""
    times = {item.runtime: item.p50_ms for item in measurements if (item.model, item.batch) == (MODELS[0], 1)}
    engine, compiled = times.get("TensorRT fp16"), times.get("torch.compile fp16")
    lead = None if engine is None or compiled is None else compiled / engine
    return {"engine_ms": engine, "target_ms": TARGET_MS, "lead_over_compile": lead, "target_lead": TARGET_LEAD}


def write_results(file: Path, gpu: str, measurements: Sequence[Measurement], warm_up: int, runs: int) -> None:
    """Writes the JSON document."""
    document = {
        "gpu": gpu,
        "date": str(datetime.date.today()),
        "command": "python -m detr_export.benchmarks.speed.gpu_check",
        "image": [HEIGHT, WIDTH],
        "warm_up": warm_up,
        "runs": runs,
        "environment": diagnose().to_dict(),
        "targets": targets(measurements),
        "measurements": [asdict(item) for item in measurements],
    }
    write_atomically(file, (json.dumps(document, indent=1) + "\n").encode())


def line(item: Measurement) -> str:
    """One for people."""
    title = f"{item.model:13} {item.runtime:20} batch {item.batch}"
    if item.error is not None or item.max_abs_diff is None:
        return f"{title}  - {item.error}"
    worst = ", ".join(f"{name} {value:.1e}" for name, value in item.max_abs_diff.items())
    return f"{title}  p50 {item.p50_ms:.2f} ms, p99 {item.p99_ms:.2f} ms, {item.images_per_s:.0f} images/s, {worst}"


def _free_mib() -> float | None:
    """Free memory of the GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0] / _MIB


if __name__ == "__main__":
    sys.exit(main())
