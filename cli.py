"""The command line: parses, calls, prints. What the commands do is in `detr_export`, `runtimes` and `benchmarks`.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error of the kind `DetrError`, 2 wrong usage,
130 interrupted. Heavy imports stay inside the commands, so that `--help` answers at once.

Annotations stay unquoted here: on Python 3.9 typer does not resolve the strings that `from __future__ import annotations`
makes of them, and every option would lose its name and its help.
"""

import contextlib
import functools
import importlib.util
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from detr_export.runtimes.errors import BackendError, DetrError, missing_extra

app = typer.Typer(
    name="detr-export",
    help="Turn DETR checkpoints into verified ONNX files; run, train and score them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class ExportTask(str, Enum):
    """What an exported file is to do."""

    auto = "auto"
    detection = "detection"
    segmentation = "segmentation"


class Precision(str, Enum):
    """What an exported file computes in."""

    fp32 = "fp32"
    fp16 = "fp16"


class KeptPart(str, Enum):
    """What may stay fp32 in an fp16 file."""

    attention = "attention"
    transformer = "transformer"


class ImageInput(str, Enum):
    """What an exported file takes."""

    float = "float"
    uint8 = "uint8"


class TrainTask(str, Enum):
    """What is trained."""

    detection = "detection"
    panoptic = "panoptic"


class PredictTask(str, Enum):
    """What to predict."""

    detection = "detection"
    panoptic = "panoptic"
    instances = "instances"
    semantic = "semantic"


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="A directory, an original .pth file, a hub id like facebook/detr-resnet-50, or demo, the one that comes along.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
DilationOption = Annotated[
    Optional[bool],
    typer.Option("--dilation/--no-dilation", help="For .pth files: it is a DC5 model, which its shapes do not show."),
]
RevisionOption = Annotated[Optional[str], typer.Option(help="For hub ids: a branch, tag or commit.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; what is not there is an error.")]
ThreadsOption = Annotated[
    Optional[int], typer.Option(min=1, help="CPU threads of one run; the backend's default if left out.")
]


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a `DetrError` into one line on stderr and exit code 1, and Ctrl-C into 130."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has left; typer knows what to do
            raise
        except (DetrError, OSError) as error:  # an OSError: a name too long, a disk that fails
            _print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def _require_export_extra() -> None:
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "export")


def _print_error(error: Exception) -> None:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)


def _progress(line: str) -> None:
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:
        typer.echo(f"  {line}", err=True)
    else:  # above a progress bar that may be there
        tqdm.tqdm.write(f"  {line}", file=sys.stderr)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"detr-export {version('detr-export')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("onnx")
@reports_errors
def onnx_command(
    checkpoint: CheckpointArgument = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("model.onnx"),
    task: Annotated[
        ExportTask, typer.Option(help="auto is the checkpoint's own; a panoptic one also gives its detector.")
    ] = ExportTask.auto,
    with_attentions: Annotated[
        bool, typer.Option("--with-attentions", help="Add the decoder's last cross-attention as an output.")
    ] = False,
    no_mask: Annotated[bool, typer.Option("--no-mask", help="Leave pixel_mask out: one image size per batch.")] = False,
    opset: Annotated[Optional[int], typer.Option(min=17, max=25, help="ONNX operator set; 18 if left out.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="fp16: half the file, with fp32 where half precision would break the model.")
    ] = Precision.fp32,
    fp16_io: Annotated[bool, typer.Option("--fp16-io", help="With fp16: float inputs and outputs are fp16, too.")] = False,
    keep_fp32: Annotated[
        Optional[KeptPart],
        typer.Option(help="With fp16: keep the products of the attention, or all of the transformer, in fp32."),
    ] = None,
    image_input: Annotated[
        ImageInput,
        typer.Option("--input", help="uint8: the graph starts from RGB images and their sizes, scales and masks them."),
    ] = ImageInput.float,
    accuracy: Annotated[
        Optional[Path],
        typer.Option(metavar="DATA", help="A COCO folder: nothing is written if AP or PQ on its validation split drop."),
    ] = None,
    max_ap_drop: Annotated[
        Optional[float], typer.Option(min=0.0, max=1.0, help="How much they may; 0.002 if left out.")
    ] = None,
    accuracy_images: Annotated[Optional[int], typer.Option(min=1, help="That many images; all if left out.")] = None,
    no_simplify: Annotated[bool, typer.Option("--no-simplify", help="Write the graph as it was traced.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the file with its checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    dilation: DilationOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint to one verified ONNX file with free batch, height and width."""
    if accuracy is None and (max_ap_drop is not None or accuracy_images is not None):
        raise typer.BadParameter("--max-ap-drop and --accuracy-images go with --accuracy DATA")
    _require_export_extra()
    from detr_export.runtimes.files import require_writable

    require_writable(output, overwrite, ".onnx")
    data = None
    if accuracy is not None:
        from detr_export.benchmarks.accuracy import gate as accuracy_gate
        from detr_export.benchmarks.accuracy.scores import find_annotated

        data = find_annotated(accuracy)
    _progress(f"reading {checkpoint}")
    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.graphs.export import DEFAULT_OPSET, ExportOptions, export_onnx

    options = ExportOptions(
        task=None if task is ExportTask.auto else task.value,
        attentions=with_attentions,
        pixel_mask=not no_mask,
        opset=opset or DEFAULT_OPSET,
        precision=precision.value,
        fp16_io=fp16_io,
        keep_fp32=None if keep_fp32 is None else keep_fp32.value,
        input=image_input.value,
        simplify=not no_simplify,
        verify=not no_verify,
        overwrite=overwrite,
    )
    loaded = load_checkpoint(checkpoint, dilation, revision)
    scores: list[Any] = []

    def accept(file: Path) -> None:
        if data is not None:
            _progress("scoring")
            drop = accuracy_gate.DEFAULT_MAX_DROP if max_ap_drop is None else max_ap_drop
            found = accuracy_gate.require_accuracy(file, loaded, data, options.task or loaded.task, drop, accuracy_images)
            scores.append(found)

    result = export_onnx(loaded, output, options, _progress, accept)
    if as_json:
        _print_json({**result.to_dict(), **({"accuracy": scores[0].to_dict()} if scores else {})})
        return
    about = result.metadata
    typer.echo(f"{result.path}  {result.size_bytes / 1e6:.1f} MB, {about.task}, {about.precision}, opset {about.opset}")
    typer.echo(result.parity.summary() if result.parity else "not verified: --no-verify")
    if result.half is not None:
        typer.echo(result.half.summary())
    for found in scores:
        typer.echo(accuracy_gate.summary(found))


@app.command("trt")
@reports_errors
def trt_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An ONNX file of detr-export's, or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The engine to write; FILE.json is written beside it.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Build the strongly typed half precision graph.")] = False,
    profile: Annotated[
        Optional[list[str]],
        typer.Option(metavar="MIN:OPT:MAX", help="Shapes, BATCHxHEIGHTxWIDTH each; the processor's own if left out."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch of the processor's own shapes.")] = 1,
    workspace: Annotated[Optional[int], typer.Option(min=1, help="MiB of scratch memory that a kernel may use.")] = None,
    optimization_level: Annotated[
        Optional[int], typer.Option(min=0, max=5, help="5 builds longest and runs fastest.")
    ] = None,
    timing_cache: Annotated[Optional[Path], typer.Option(help="Measurements of kernels, read and written.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs on later TensorRTs of the same major version, too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on every GPU from Ampere on.")
    ] = False,
    aux_streams: Annotated[Optional[int], typer.Option(min=0, help="Streams that kernels may use side by side.")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="With --fp16: keep the attention, the transformer, all in fp32, as needed.")
    ] = False,
    checkpoint: Annotated[
        Optional[str], typer.Option(help="What the engine must agree with; what the file came from if left out.")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the engine with its checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cuda",
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine: attested, and compared with its checkpoint in the corners of every profile."""
    if fallback and not fp16:
        raise typer.BadParameter("--fallback goes with --fp16")
    _require_export_extra()
    import tempfile

    from detr_export.engines.build import build_with_fallback
    from detr_export.engines.gate import FALLBACKS
    from detr_export.engines.options import BuildSettings, EngineOptions
    from detr_export.engines.source import make_graph
    from detr_export.runtimes.backends.tensorrt.profiles import parse_profile
    from detr_export.runtimes.session import parse_device

    kind, index = parse_device(device)
    if kind != "cuda":
        raise BackendError(f"device is {device!r}; an engine is built on a GPU, 'cuda' or 'cuda:N'")
    options = EngineOptions(
        profiles=tuple(parse_profile(text) for text in profile or ()),
        max_batch=max_batch,
        settings=BuildSettings(workspace, optimization_level, version_compatible, hardware_compatible, aux_streams),
        timing_cache=timing_cache,
        device=index,
        verify=not no_verify,
        checkpoint=checkpoint,
        overwrite=overwrite,
    )
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    tensorrt_api.version()  # before a minute of exporting
    tried = (FALLBACKS if fallback else FALLBACKS[:1]) if fp16 else FALLBACKS[-1:]
    with tempfile.TemporaryDirectory(prefix="detr-export-") as folder, _bar("building") as built:
        result = build_with_fallback(
            lambda step: make_graph(source, step, Path(folder), _progress),
            output,
            options,
            _progress,
            lambda phase, done, steps: built(done, phase, steps),
            tried,
        )
    if as_json:
        _print_json(result.to_dict())
        return
    about = result.sidecar
    typer.echo(f"{result.path}  {result.size_bytes / 1e6:.1f} MB, {about.precision}, TensorRT {about.tensorrt}, {about.gpu}")
    if about.fallback is not None:
        typer.echo(f"fell back to {about.fallback}")
    if result.parity is not None:
        typer.echo(result.parity.summary())
    else:
        typer.echo("not verified: --no-verify" if result.built_here else "built by another process in the meantime")


@app.command()
@reports_errors
def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    checkpoint: Annotated[
        Optional[str], typer.Option(help="The checkpoint that it must agree with; the one it came from if left out.")
    ] = None,
    dilation: DilationOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare an exported file with a checkpoint again: the same gate as in the export."""
    _require_export_extra()
    from detr_export.graphs.export import verify_file
    from detr_export.verification.comparison import require

    parity = verify_file(model, checkpoint, dilation, revision, _progress)
    if as_json:
        _print_json(parity.to_dict())
    else:
        typer.echo(parity.summary())
    require(parity, str(model))


@app.command()
@reports_errors
def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX file.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an ONNX file says about itself."""
    _require_export_extra()
    from detr_export.graphs.inspection import inspect_onnx

    found = inspect_onnx(model)
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.summary())


@app.command()
@reports_errors
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, an engine or a checkpoint.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders and globs.")],
    task: Annotated[PredictTask, typer.Option(help="All but detection need a segmentation model.")] = PredictTask.detection,
    explain: Annotated[bool, typer.Option("--explain", help="Draw where the decoder looked for each detection.")] = False,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score that is shown.")] = 0.5,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="A folder for annotated pictures and predictions.json.")
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    trust_engine: Annotated[
        bool, typer.Option("--trust-engine", help="Run an engine without a sidecar that names it; engines are code.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find or segment objects in images; an unreadable image is reported and the rest go on."""
    if explain and task is not PredictTask.detection:
        raise typer.BadParameter("--explain draws detections; leave --task out")
    from detr_export.runtimes.folder import predict_files
    from detr_export.runtimes.predictor import Predictor
    from detr_export.runtimes.processing.images import iter_image_paths

    paths = iter_image_paths(images)
    outcomes = []
    with Predictor.load(model, device, threads, attentions=explain, trust_engine=trust_engine) as predictor:
        for outcome in predict_files(predictor, paths, threshold, output, overwrite, "attention" if explain else task.value):
            outcomes.append(outcome.to_dict())
            if outcome.error is not None:
                _print_error(outcome.error)
            elif not as_json:
                typer.echo(outcome.summary())
    if as_json:
        _print_json(outcomes)
    if any("error" in outcome for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
@reports_errors
def doctor(as_json: JsonOption = False) -> None:
    """Show what is installed, what of it works here, and what is known to go wrong with it."""
    from detr_export.runtimes.doctor import diagnose

    found = diagnose()
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.summary())


@app.command()
@reports_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file or a checkpoint.")],
    images: Annotated[Path, typer.Option(help="The folder of the annotated images.")],
    annotations: Annotated[Path, typer.Option(help="A COCO instances file; its category ids are the model's label ids.")],
    panoptic: Annotated[
        Optional[tuple[Path, Path]],
        typer.Option(metavar="FILE DIR", help="A COCO panoptic file and the folder of its PNGs, for PQ."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Score that many images; all if left out.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are read and run together.")] = 1,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Lowest score in a panoptic segmentation; AP takes all detections.")
    ] = 0.85,
    against: Annotated[
        Optional[str],
        typer.Option(metavar="CHECKPOINT", help="A checkpoint or file to score on the same images, and the differences."),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on annotated images: box AP, mask AP and, with --panoptic, PQ."""
    if sys.version_info < (3, 10):
        raise BackendError(f"evaluate needs Python 3.10 or newer; this is {platform.python_version()}")
    from detr_export.benchmarks.accuracy.evaluation import evaluate as evaluate_model

    found = evaluate_model(model, images, annotations, panoptic, limit, batch, device, threads, threshold, against)
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.summary())


@app.command("demo-data")
@reports_errors
def demo_data(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder; other splits in it stay.")],
    images: Annotated[int, typer.Option(min=1, help="How many to draw.")],
    split: Annotated[str, typer.Option(help="Its name, from which the pictures are drawn: train, val, ...")] = "train",
) -> None:
    """Draw a COCO data set of shapes in landscapes, the same for everybody: what `demo` was trained on."""
    from detr_export.training.demo_data import write_demo_data

    with _bar("drawing", images) as drawn:
        write_demo_data(directory, images, split, lambda done: drawn(done, ""))
    typer.echo(f"{directory}  {images} images of the split {split}")


@app.command()
@reports_errors
def train(
    data: Annotated[
        Path, typer.Option(help="A COCO folder: train*/, annotations/instances_train*.json or panoptic_train*.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the checkpoint, its log and its plot.")],
    config: Annotated[
        Optional[Path], typer.Option(help="A config.json to train from scratch; preprocessor_config.json may lie beside it.")
    ] = None,
    checkpoint: Annotated[
        Optional[str], typer.Option("--from", metavar="CHECKPOINT", help="Fine-tune this one; its classes may differ.")
    ] = None,
    task: Annotated[TrainTask, typer.Option(help="Boxes; or boxes of things and stuff, then masks.")] = TrainTask.detection,
    epochs: Annotated[int, typer.Option(min=0, help="Of the detector, or of all with --jointly.")] = 300,
    mask_epochs: Annotated[int, typer.Option(min=0, help="Panoptic: of the mask head, on the finished detector.")] = 25,
    jointly: Annotated[bool, typer.Option("--jointly", help="Panoptic: train detector and mask head together.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step, in each process.")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of all but the backbone.")] = 1e-4,
    backbone_learning_rate: Annotated[float, typer.Option(min=0.0, help="Of the backbone.")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="AdamW's.")] = 1e-4,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest norm of the gradient; 0 for no limit.")] = 0.1,
    drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of a stage after which the rates fall to a tenth.")
    ] = 2 / 3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the rates rise from 0.")] = 0,
    flip: Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability of a horizontal flip.")] = 0.5,
    scale: Annotated[
        tuple[float, float], typer.Option(metavar="LOW HIGH", help="Range of the image size, relative to the processor's.")
    ] = (0.6, 1.0),
    batch_norm: Annotated[
        Optional[bool],
        typer.Option(
            "--train-batch-norm/--keep-batch-norm",
            help="Whether the whole backbone with its batch norm is trained; left out: when it starts from scratch.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, augmentation and dropout.")] = 0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16, in half the space.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare images.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")] = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cpu",
    dilation: DilationOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train or fine-tune on a COCO folder; also under torchrun. Ctrl-C keeps the state for --resume."""
    _require_export_extra()
    for package in ("matplotlib", "tqdm"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "train")
    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.training.options import TrainingOptions
    from detr_export.training.trainer import train as train_model

    options = TrainingOptions(
        task=task.value,
        epochs=epochs,
        mask_epochs=mask_epochs,
        jointly=jointly,
        batch_size=batch,
        learning_rate=learning_rate,
        backbone_learning_rate=backbone_learning_rate,
        weight_decay=weight_decay,
        clip=clip,
        drop=drop,
        warmup=warmup,
        flip=flip,
        scale=scale,
        train_batch_norm=batch_norm,
        seed=seed,
        half=half,
    )
    start = None if checkpoint is None else load_checkpoint(checkpoint, dilation, revision)
    with _bar("training") as trained:
        result = train_model(
            data,
            output,
            options,
            config,
            start,
            device,
            workers,
            resume,
            overwrite,
            _progress,
            lambda stage, done, steps, losses: trained(done, f"{stage}: {losses}", steps),
        )
    if result is None:  # another process of a torchrun reports
        return
    if as_json:
        _print_json(result.to_dict())
    else:
        typer.echo(f"{result.directory}  {result.steps} steps, loss {result.last['loss']}")


@contextlib.contextmanager
def _bar(title: str, total: Optional[int] = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, where that is a terminal; yields what sets it: (done, note, total)."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, note, total=None: None
        return
    with tqdm(total=total, desc=title, disable=None, leave=False) as bar:

        def set_to(done: int, note: str, total: Optional[int] = None) -> None:
            bar.total = bar.total if total is None else total
            bar.set_description_str(note or title, refresh=False)
            bar.update(done - bar.n)

        yield set_to


def _tolerate_any_name() -> None:
    """A file's name need not be text in the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of `detr-export`."""
    _tolerate_any_name()
    app()


if __name__ == "__main__":
    main()
