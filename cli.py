"""The command line: parses, calls, prints. What the commands do is in `detr_export`, `runtimes` and `benchmarks`.

Heavy imports stay inside the commands, so that `--help` answers at once. How results, errors and progress are printed is in
`terminal`.

Annotations stay unquoted here: on Python 3.9 typer does not resolve the strings that `from __future__ import annotations`
makes of them, and every option would lose its name and its help.
"""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from detr_export.choices import (
    CacheOption,
    CalibrationMethod,
    CheckpointArgument,
    DemoKind,
    DemoLayout,
    DeviceOption,
    DilationOption,
    ExportTask,
    FloatPrecision,
    GpuOption,
    ImageInput,
    Int8Scope,
    KeptPart,
    PictureInput,
    Precision,
    PredictEngine,
    PredictTask,
    ProcessorOption,
    ResizeKind,
    ResultFormat,
    RevisionOption,
    StrictOption,
    TrainTask,
    TrustOption,
    value_of,
)
from detr_export.extras import require_extra, require_python
from detr_export.terminal import (
    Commands,
    JsonOption,
    LimitOption,
    OverwriteOption,
    TerminalProgress,
    ThreadsOption,
    VersionOption,
    print_json,
    print_note,
    print_result,
    reports_errors,
    run_command_line,
    spell_lists,
)

PROGRAM = "detr-export"

_LIST_VALUES = {"--compute-capability": re.compile(r"\d+\.\d+")}  # an option that takes several values


class _Commands(Commands):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spell_lists(args, _LIST_VALUES))


app = typer.Typer(
    name=PROGRAM,
    cls=_Commands,
    help="Turn DETR checkpoints into verified ONNX files; run, train and score them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(version: VersionOption = False, limit: LimitOption = None) -> None:
    pass


@app.command("onnx")
@reports_errors
def onnx_command(
    checkpoint: CheckpointArgument = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("model.onnx"),
    task: Annotated[
        ExportTask, typer.Option(help="auto: the checkpoint's own. A panoptic checkpoint also gives its detector.")
    ] = ExportTask.auto,
    with_attentions: Annotated[
        bool, typer.Option("--with-attentions", help="Add the decoder's last cross-attention as an output.")
    ] = False,
    no_mask: Annotated[
        bool, typer.Option("--no-mask", help="Leave pixel_mask out: all images of a batch then have one size.")
    ] = False,
    one_graph: Annotated[
        bool,
        typer.Option(
            "--one-graph",
            help="Of a panoptic checkpoint: write one file that draws all masks. By default there are two files, and only "
            "the masks that are wanted are drawn.",
        ),
    ] = False,
    opset: Annotated[
        Optional[int], typer.Option(min=17, max=25, help="Version of ONNX's operators; 18 if left out.")
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp16: half the size; what fp16 would break stays fp32. int8: smaller still, and faster on many CPUs; it "
            "needs --calibration."
        ),
    ] = Precision.fp32,
    fp16_io: Annotated[
        bool, typer.Option("--fp16-io", help="With --precision fp16: make float inputs and outputs fp16, too.")
    ] = False,
    keep_fp32: Annotated[
        Optional[KeptPart],
        typer.Option(help="With --precision fp16: a part that stays fp32, the attention or all of the transformer."),
    ] = None,
    calibration: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="With --precision int8: pictures to calibrate on; of a data set its split train."),
    ] = None,
    calibration_images: Annotated[
        Optional[int],
        typer.Option(min=1, metavar="N", help="With --calibration: how many pictures; all, and at most 100, if left out."),
    ] = None,
    calibration_method: Annotated[
        Optional[CalibrationMethod],
        typer.Option(help="With --calibration: how scales follow from the values; percentile if left out."),
    ] = None,
    int8_scope: Annotated[
        Optional[Int8Scope],
        typer.Option(help="With --precision int8: which layers. encoder: all up to its end, the backbone too; if left out."),
    ] = None,
    int8_float: Annotated[
        Optional[FloatPrecision],
        typer.Option(help="With --precision int8: what the rest is; fp32 if left out, fp16 for TensorRT."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="With --precision int8: list what each layer alone costs, the worst first.")
    ] = False,
    image_input: Annotated[
        ImageInput,
        typer.Option("--input", help="uint8: the file takes RGB images with their sizes, and scales and masks them itself."),
    ] = ImageInput.float,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end",
            help="The file takes an RGB image of any size as uint8, and gives sorted scores, labels and boxes.",
        ),
    ] = False,
    bgr: Annotated[
        bool, typer.Option("--bgr", help="With --end-to-end: the image is in BGR order, as OpenCV's are.")
    ] = False,
    top_k: Annotated[
        Optional[int],
        typer.Option(
            "--top-k", min=1, metavar="N", help="With --end-to-end: return the N best detections; all if left out."
        ),
    ] = None,
    resize: Annotated[
        Optional[ResizeKind],
        typer.Option(
            help="With --end-to-end: matmul runs everywhere and is used if left out; operator is ONNX's Resize, which is "
            "faster and which TensorRT does not read."
        ),
    ] = None,
    accuracy: Annotated[
        Optional[Path],
        typer.Option(metavar="DATA", help="A data set. Nothing is written if AP or PQ on its split val drops."),
    ] = None,
    max_ap_drop: Annotated[
        Optional[float],
        typer.Option(
            min=0.0, max=1.0, help="With --accuracy: how far AP and PQ may drop; if left out 0.002, for int8 0.003."
        ),
    ] = None,
    accuracy_images: Annotated[
        Optional[int], typer.Option(min=1, help="With --accuracy: how many images are scored; all if left out.")
    ] = None,
    golden: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="Also write inputs and the checkpoint's outputs there, to test a port with."),
    ] = None,
    model_card: Annotated[
        bool, typer.Option("--model-card", help="Also write a model card for the hub, with the file's name and .md.")
    ] = False,
    card_picture: Annotated[
        Optional[Path],
        typer.Option(metavar="IMAGE", help="With --model-card: show there what the file finds in this picture."),
    ] = None,
    no_simplify: Annotated[bool, typer.Option("--no-simplify", help="Write the graph as it was traced.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the file with its checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    dilation: DilationOption = None,
    revision: RevisionOption = None,
    processor: ProcessorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint to one verified ONNX file with free batch, height and width."""
    if accuracy is None and (max_ap_drop is not None or accuracy_images is not None):
        raise typer.BadParameter("--max-ap-drop and --accuracy-images go with --accuracy DATA")
    if not end_to_end and (bgr or top_k is not None or resize is not None):
        raise typer.BadParameter("--bgr, --top-k and --resize go with --end-to-end")
    quantises = precision is Precision.int8
    int8_given = (calibration, calibration_images, calibration_method, int8_scope, int8_float, sensitivity or None)
    if not quantises and any(item is not None for item in int8_given):
        raise typer.BadParameter("--calibration..., --int8-scope, --int8-float and --sensitivity go with --precision int8")
    if quantises and calibration is None:
        raise typer.BadParameter("--precision int8 needs --calibration DIR, pictures like those that the model will see")
    if quantises and accuracy is None and not no_verify:
        raise typer.BadParameter(
            "no comparison of numbers can judge an int8 file: add --accuracy DATA to score it, or --no-verify to go without"
        )
    if quantises and golden is not None:
        raise typer.BadParameter("--golden does not go with --precision int8, which has no tolerances; export fp32 or fp16")
    if card_picture is not None and not model_card:
        raise typer.BadParameter("--card-picture goes with --model-card")
    require_extra("export")
    from detr_export.graphs.int8.options import DEFAULT_METHOD, FIRST_OPSETS, Int8Options
    from detr_export.graphs.options import DEFAULT_OPSET, SUFFIX, ExportOptions
    from detr_export.runtimes.files import require_writable
    from detr_export.runtimes.metadata import BGR, MATMUL, RGB

    require_writable(output, overwrite, SUFFIX)
    if model_card:
        from detr_export.model_card import card_file, require_card_place, write_card

        require_card_place(output, overwrite, card_picture)
    if golden is not None:
        from detr_export.verification.golden.writing import require_golden_place

        require_golden_place(golden, overwrite, output)
    if accuracy is not None:
        from detr_export.benchmarks.accuracy import gate, int8_gate
        from detr_export.benchmarks.accuracy.scores import find_annotated

        data = find_annotated(accuracy)
    int8 = None
    if quantises and calibration is not None:
        from detr_export.graphs.int8.layers import DEFAULT_SCOPE
        from detr_export.graphs.int8.pictures import find_pictures

        int8 = Int8Options(
            pictures=find_pictures(calibration, calibration_images),
            method=value_of(calibration_method) or DEFAULT_METHOD,
            scope=value_of(int8_scope) or DEFAULT_SCOPE,
            float_precision=value_of(int8_float) or FloatPrecision.fp32.value,
            sensitivity=sensitivity,
        )
        if accuracy is not None:
            int8_gate.require_unseen(int8.pictures, data)
    options = ExportOptions(
        task=None if task is ExportTask.auto else task.value,
        attentions=with_attentions,
        pixel_mask=not no_mask,
        one_graph=one_graph,
        opset=opset or (DEFAULT_OPSET if int8 is None else FIRST_OPSETS[int8.float_precision]),
        precision=precision.value,
        int8=int8,
        fp16_io=fp16_io,
        keep_fp32=value_of(keep_fp32),
        input=image_input.value,
        end_to_end=end_to_end,
        color=BGR if bgr else RGB,
        resize=value_of(resize) or MATMUL,
        top_k=top_k,
        simplify=not no_simplify,
        verify=not no_verify,
        overwrite=overwrite,
    )
    progress = TerminalProgress()
    progress.stage(f"reading {checkpoint}")
    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.graphs.export import exported

    loaded = load_checkpoint(checkpoint, dilation, revision, value_of(processor))
    scores = written = None
    with exported(loaded, output, options, progress) as draft:
        if accuracy is not None:
            progress.stage("scoring")
            default = gate.DEFAULT_MAX_DROP if int8 is None else int8_gate.DEFAULT_MAX_DROP
            drop = default if max_ap_drop is None else max_ap_drop
            scored = (loaded, data, options.task or loaded.task, drop, accuracy_images)
            if int8 is None:
                scores = gate.require_accuracy(draft.path, *scored)
            else:
                scores = int8_gate.settle_int8(draft, *scored, sensitivity=sensitivity, progress=progress)
        if golden is not None:
            from detr_export.verification.golden.exports import write_export_golden

            progress.stage("computing golden data")
            about, parity = draft.result.metadata, draft.result.parity
            written = write_export_golden(golden, output.name, loaded, options, about, parity)
        if model_card:
            progress.stage("writing the model card")
            scored_line = None if scores is None else gate.summary(scores)
            write_card(draft.path, draft.result.metadata, scored_line, card_picture)
    if as_json:
        extra: dict[str, Any] = {"accuracy": scores.to_dict()} if scores is not None else {}
        extra |= {"golden": written.to_dict()} if written is not None else {}
        extra |= {"model_card": str(card_file(output))} if model_card else {}
        print_json({**draft.result.to_dict(), **extra})
        return
    typer.echo(draft.result.summary())
    if int8 is not None:
        from detr_export.runtimes.cpu import int8_note

        typer.echo(int8_note())
    if scores is not None:
        typer.echo(gate.summary(scores))
    if written is not None:
        typer.echo(written.summary())
    if model_card:
        typer.echo(f"model card: {card_file(output)}")


@app.command("trt")
@reports_errors
def trt_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An ONNX file of detr-export's, or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The engine to write; FILE.json is written beside it.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Build the fp16 graph.")] = False,
    rtx: Annotated[
        bool, typer.Option("--rtx", help="Compile with TensorRT-RTX, for GeForce and RTX cards; this needs no GPU.")
    ] = False,
    compute_capability: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="N.N...",
            help="With --rtx: the kinds of GPUs to compile for, such as 8.6 8.9. All from Ampere on if left out.",
        ),
    ] = None,
    profile: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Range of shapes, BATCHxHEIGHTxWIDTH each; may be repeated. The processor's own shapes if left out.",
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Without --profile: the largest batch.")] = 1,
    workspace: Annotated[Optional[int], typer.Option(min=1, help="MiB of scratch memory that a kernel may use.")] = None,
    optimization_level: Annotated[
        Optional[int], typer.Option(min=0, max=5, help="0 builds fastest; 5 builds longest, and the engine runs fastest.")
    ] = None,
    timing_cache: Annotated[
        Optional[Path], typer.Option(help="A file with measurements of kernels; it is read, and written after the build.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Build for later TensorRTs, too: of the same major version, and 11 for 10."
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Build for every GPU from Ampere on.")
    ] = False,
    aux_streams: Annotated[
        Optional[int], typer.Option(min=0, help="Extra CUDA streams, on which kernels may run at the same time.")
    ] = None,
    fallback: Annotated[
        bool,
        typer.Option(
            "--fallback",
            help="With --fp16: if the engine disagrees with its checkpoint or computes in another precision, keep the "
            "attention in fp32, then the transformer, then everything.",
        ),
    ] = False,
    checkpoint: Annotated[
        Optional[str],
        typer.Option(help="The checkpoint that it must agree with; the one that the file came from if left out."),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the engine with its checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    device: GpuOption = "cuda",
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine, check its precision, and compare it with its checkpoint in the corners of every profile."""
    if fallback and not fp16:
        raise typer.BadParameter("--fallback goes with --fp16")
    if compute_capability and not rtx:
        raise typer.BadParameter("--compute-capability goes with --rtx; TensorRT builds for the GPU that it runs on")
    require_extra("export")
    from detr_export.engines.build import build_from_source
    from detr_export.engines.ladder import steps
    from detr_export.engines.options import BuildSettings, EngineOptions, gpu_number, parse_capability
    from detr_export.runtimes.backends.tensorrt.api import TENSORRT, TENSORRT_RTX
    from detr_export.runtimes.backends.tensorrt.profiles import parse_profile

    options = EngineOptions(
        library=TENSORRT_RTX if rtx else TENSORRT,
        targets=tuple(parse_capability(text) for text in compute_capability or ()),
        profiles=tuple(parse_profile(text) for text in profile or ()),
        max_batch=max_batch,
        settings=BuildSettings(workspace, optimization_level, version_compatible, hardware_compatible, aux_streams),
        timing_cache=timing_cache,
        device=gpu_number(device),
        verify=not no_verify,
        checkpoint=checkpoint,
        overwrite=overwrite,
    )
    with TerminalProgress("building") as progress:
        result = build_from_source(source, output, options, steps(fp16, fallback), progress)
    print_result(result, as_json)


@app.command()
@reports_errors
def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An ONNX file or an engine; with --against also a checkpoint.")
    ],
    checkpoint: Annotated[
        Optional[str], typer.Option(help="The checkpoint that it must agree with; the one that it came from if left out.")
    ] = None,
    against: Annotated[
        Optional[str],
        typer.Option(metavar="OTHER", help="Compare with this file, engine or checkpoint, whatever MODEL came from."),
    ] = None,
    inputs: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="With --against: run on the arrays of an .npz file, named as the inputs."),
    ] = None,
    images: Annotated[
        Optional[list[str]],
        typer.Option(metavar="IMAGES", help="With --against: run on pictures, files or folders; may be repeated."),
    ] = None,
    device: Annotated[
        Optional[str],
        typer.Option(help="An engine: its GPU, cuda if left out. With --against: where MODEL runs; cpu if left out."),
    ] = None,
    against_device: Annotated[Optional[str], typer.Option(help="With --against: where OTHER runs; cpu if left out.")] = None,
    atol: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="[NAME=]VALUE",
            help="With --against: the largest difference that passes, of one output or of all; may be repeated.",
        ),
    ] = None,
    dilation: DilationOption = None,
    revision: Annotated[
        Optional[str], typer.Option(help="For a checkpoint, or OTHER, on the hub: a branch, tag or commit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare an exported file with its checkpoint again, as the export does; or any two models with each other."""
    from detr_export.runtimes.opening import ENGINE_SUFFIXES

    engine = model.endswith(ENGINE_SUFFIXES)
    if against is None and (images or atol or any(item is not None for item in (inputs, against_device))):
        raise typer.BadParameter("--inputs, --images, --against-device and --atol go with --against OTHER")
    if against is None and device is not None and not engine:
        raise typer.BadParameter("--device goes with an engine or with --against OTHER; an ONNX file is verified on the CPU")
    if against is not None:
        if checkpoint is not None or dilation is not None:
            raise typer.BadParameter("--checkpoint and --dilation do not go with --against")
        if inputs is not None and images:
            raise typer.BadParameter("--inputs and --images do not go together")
        require_python(3, 10, "verify --against")
        from detr_export.verification.sessions import compare_models, parse_limits, require_agreement

        comparison = compare_models(
            model,
            against,
            device or "cpu",
            against_device or "cpu",
            inputs=inputs,
            images=images or (),
            limits=parse_limits(atol or ()),
            revision=revision,
            progress=TerminalProgress(),
        )
        print_result(comparison, as_json)
        require_agreement(comparison, model, against)
        return
    require_extra("export")
    if engine:
        from detr_export.engines.gate import verify_engine

        print_result(verify_engine(model, checkpoint, device or "cuda", dilation, revision, TerminalProgress()), as_json)
        return
    from detr_export.graphs.export import verify_file
    from detr_export.verification.comparison import require

    parity = verify_file(model, checkpoint, dilation, revision, TerminalProgress())
    print_result(parity, as_json)
    require(parity, model)


@app.command()
@reports_errors
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any ONNX file, also one on the hub: org/repo/file.onnx.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an ONNX file says about itself."""
    from detr_export.graphs.inspection import inspect_onnx

    found = inspect_onnx(model)
    print_result(found, as_json)


@app.command()
@reports_errors
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, an engine or a checkpoint.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders with all folders below them, patterns like *.jpg, addresses on the web, and - for stdin. "
            "Or videos, the number of a camera, or the rtsp:// address of a stream.",
        ),
    ],
    engine: Annotated[
        PredictEngine,
        typer.Option(help="ray: the pictures are spread over many processes or machines by Ray Data, into --output DIR."),
    ] = PredictEngine.local,
    workers: Annotated[
        Optional[int],
        typer.Option(
            min=1, metavar="N", help="With --engine ray: processes that run the model; all GPUs or CPUs if left out."
        ),
    ] = None,
    address: Annotated[
        Optional[str],
        typer.Option(
            metavar="HOST:PORT",
            help="With --engine ray: of a Ray cluster, or auto; RAY_ADDRESS if left out. local: this machine alone.",
        ),
    ] = None,
    column: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="With --engine ray: IMAGES are Parquet tables, and this column has the pictures."),
    ] = None,
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Predict on every page or frame of a file. Else on the first one.")
    ] = False,
    allow_truncated: Annotated[
        bool,
        typer.Option("--allow-truncated", help="Take files that were cut short as far as they go. Else they are errors."),
    ] = False,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Take pictures from other machines by http:// too. Else only by https://.")
    ] = False,
    task: Annotated[
        PredictTask,
        typer.Option(help="panoptic, instances and semantic need a segmentation model, tables a Table Transformer."),
    ] = PredictTask.detection,
    explain: Annotated[bool, typer.Option("--explain", help="Draw where the decoder looked for each detection.")] = False,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score that is shown.")] = 0.5,
    classes: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME,...", help="Keep only these classes; may be repeated. Not for semantic maps and tables."),
    ] = None,
    every: Annotated[
        Optional[int], typer.Option(min=1, metavar="N", help="Of a video: take one frame of N; 1 if left out.")
    ] = None,
    frames: Annotated[
        Optional[int], typer.Option(min=1, metavar="N", help="Of a video: end after N frames that were predicted on.")
    ] = None,
    seconds: Annotated[
        Optional[float], typer.Option(min=0.001, metavar="S", help="Of a video: end after its first S seconds.")
    ] = None,
    reconnect: Annotated[
        Optional[float],
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Of a camera or stream: try for so long to open it again when it is lost; 30 if left out, 0 for no try.",
        ),
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", help="A folder for annotated pictures and a file of results; both for each video."),
    ] = None,
    form: Annotated[
        Optional[ResultFormat],
        typer.Option(
            "--format",
            help="With --output: of the files of results; json if left out. coco, csv and parquet hold detections and "
            "instances; yolo and labelme are a file for each image, and hold all but tables.",
        ),
    ] = None,
    annotations: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="With --format coco: a COCO instances file that has the ids of the images."),
    ] = None,
    line_width: Annotated[
        Optional[int],
        typer.Option(min=1, metavar="N", help="With --output: width of lines, pixels; it fits the picture if left out."),
    ] = None,
    font_size: Annotated[
        Optional[int],
        typer.Option(min=1, metavar="N", help="With --output: size of labels, pixels; it fits the picture if left out."),
    ] = None,
    hide_labels: Annotated[bool, typer.Option("--hide-labels", help="With --output: draw no labels.")] = False,
    overwrite: OverwriteOption = False,
    batch: Annotated[
        Optional[int],
        typer.Option(
            min=1, metavar="N", help="Most images of one run of the model; 1 if left out. Images of one size run together."
        ),
    ] = None,
    batch_from: Annotated[
        Optional[Path],
        typer.Option(
            metavar="REPORT",
            help="With --engine ray: the smallest fast --batch in detr-bench's report.json of this model.",
        ),
    ] = None,
    max_padding: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Images of several sizes may share a batch if at most this share of its pixels is padding. Padding changes "
            "what a DETR finds. Not for segmentation.",
        ),
    ] = 0.0,
    no_clip: Annotated[
        bool, typer.Option("--no-clip", help="Leave boxes as the model gives them. Else they end at the edges of the image.")
    ] = False,
    processor: ProcessorOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    timeout: Annotated[
        Optional[float],
        typer.Option(
            metavar="SECONDS",
            help="Longest time for an image, for an ONNX file that you do not trust: it runs in a process of its own, which "
            "is ended then.",
        ),
    ] = None,
    trust_engine: TrustOption = False,
    strict: StrictOption = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find or segment objects in images or videos, or read tables. What is unreadable is reported; the others still run."""
    if explain and task is not PredictTask.detection:
        raise typer.BadParameter("--explain draws detections; leave --task out")
    if output is None and any(item is not None for item in (form, line_width, font_size, hide_labels or None)):
        raise typer.BadParameter("--format, --line-width, --font-size and --hide-labels go with --output DIR")
    if annotations is not None and form is not ResultFormat.coco:
        raise typer.BadParameter("--annotations goes with --format coco")
    from detr_export.runtimes.errors import InputError
    from detr_export.runtimes.video.sources import find_videos

    # What is named, and what runs on it, decide which options there are
    try:
        videos = find_videos(images)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    of_videos = {"--every": every, "--frames": frames, "--seconds": seconds, "--reconnect": reconnect}
    of_ray = {"--workers": workers, "--address": address, "--column": column, "--batch-from": batch_from}
    of_local = {"--all-frames": all_frames, "--explain": explain, "--max-padding": max_padding or None}
    if engine is PredictEngine.ray:
        if videos:
            raise typer.BadParameter(f"{videos[0].title} is a video, and --engine ray is for pictures; leave one out")
        of_drawings = {"--line-width": line_width, "--font-size": font_size, "--hide-labels": hide_labels}
        others = {"--annotations": annotations, "--timeout": timeout}
        _refuse({**of_videos, **of_local, **of_drawings, **others}, "with --engine ray")
        if output is None:
            raise typer.BadParameter("--engine ray needs --output DIR, a folder that all machines see")
        if form not in (None, ResultFormat.parquet, ResultFormat.coco):
            raise typer.BadParameter("--engine ray writes a Parquet table; --format takes parquet, or coco in addition")
        if batch is not None and batch_from is not None:
            raise typer.BadParameter("--batch-from chooses the batch; leave --batch out")
        require_extra("ray")
        if batch_from is not None:
            from detr_export.benchmarks.speed.batch_choice import choose_batch

            batch = choose_batch(batch_from, model, device)
            print_note(f"--batch is {batch}, by {batch_from}")
        from detr_export.ray_prediction import predict_with_ray
        from detr_export.runtimes.distributed.job import ModelOptions, Work

        predict_with_ray(
            images,
            output,
            ModelOptions(
                path=model,
                device=device,
                threads=threads,
                trust_engine=trust_engine,
                processor=value_of(processor),
                strict=strict,
                cache=None if cache is None else str(cache),
            ),
            Work(
                task=task.value,
                threshold=threshold,
                batch=batch or 1,
                clip=not no_clip,
                classes=None if classes is None else tuple(classes),
                allow_truncated=allow_truncated,
                allow_http=allow_http,
            ),
            column,
            workers,
            address,
            coco=form is ResultFormat.coco,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    _refuse(of_ray, "without --engine ray")
    if videos:
        of_pictures = {"--allow-truncated": allow_truncated, "--allow-http": allow_http, "--format": form}
        _refuse({**of_local, **of_pictures}, "on videos")
    else:
        _refuse(of_videos, "on pictures")
    batch = batch or 1
    if form is ResultFormat.parquet:
        require_extra("parquet")
    from detr_export.prediction_report import PredictionReport
    from detr_export.runtimes.file_batches import ATTENTION, require_style
    from detr_export.runtimes.folder import predict_files
    from detr_export.runtimes.opening import CHECKPOINT, kind_of, spins
    from detr_export.runtimes.predictor import Predictor
    from detr_export.runtimes.result_files import require_format
    from detr_export.runtimes.results.classes import split_names
    from detr_export.runtimes.results.drawing_style import DrawingStyle
    from detr_export.runtimes.session import largest_batch
    from detr_export.runtimes.sources import find_sources, pages_note
    from detr_export.runtimes.tasks import require_filter

    what = ATTENTION if explain else task.value
    style = DrawingStyle(line_width, font_size, not hide_labels)
    format_name = value_of(form) or ResultFormat.json.value
    try:
        require_style(what, style)
        require_format(format_name, what)
        if classes:
            require_filter(what)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    if videos:
        if reconnect is not None and not videos[0].live:
            raise typer.BadParameter(f"--reconnect is for cameras and streams, and {videos[0].title} is a file")
        require_extra("video")
        from detr_export.runtimes.video.recording import recording_places
        from detr_export.runtimes.video.run import VideoOptions, VideoRun
        from detr_export.video_report import VideoReport

        places = None if output is None else recording_places(videos, output, overwrite)
    else:
        stdin = getattr(sys.stdin, "buffer", None)  # None where stdin is closed
        sources = find_sources(images, output, all_frames, stdin, allow_truncated, allow_http)
    attentions = explain and kind_of(model) == CHECKPOINT  # a file was exported with them, or does not have them
    with Predictor.load(
        model,
        device,
        threads,
        attentions=attentions,
        spinning=False if spins(model, device) else None,  # other threads read and draw while the model runs
        trust_engine=trust_engine,
        processor=value_of(processor),
        strict=strict,
        cache=cache,
        timeout=timeout,
    ) as predictor:
        largest = largest_batch(predictor.session, device)
        if largest is not None and batch > largest:
            raise InputError(f"--batch is {batch}, but the model on the device {device} takes {largest} at most")
        wanted = split_names(classes, predictor.id2label) if classes else None
        if videos:
            options = VideoOptions(
                what, threshold, not no_clip, wanted, batch, style, every or 1, frames, seconds, reconnect
            )
            report_of_videos = VideoReport(as_json)
            for number, video in enumerate(videos):
                report_of_videos.follow(VideoRun(predictor, video, options, None if places is None else places[number]))
            if report_of_videos.failed:
                raise typer.Exit(1)
            return
        with PredictionReport(len(sources.pictures), as_json) as report:
            for outcome in predict_files(
                predictor,
                sources.pictures,
                threshold,
                output,
                overwrite,
                what,
                batch,
                max_padding,
                clip=not no_clip,
                form=format_name,
                annotations=annotations,
                classes=wanted,
                style=style,
            ):
                report.add(outcome)
    for note in (sources.note(), pages_note(report.totals.with_more_pages)):
        if note is not None:
            print_note(note)
    if report.totals.failed:
        raise typer.Exit(1)


def _refuse(options: dict[str, Any], where: str) -> None:
    """Refuses options that have no meaning there. One that was not given is None or False."""
    wrong = [name for name, value in options.items() if value is not None and value is not False]
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)} cannot be used {where}; leave it out")


@app.command()
@reports_errors
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, an engine or a checkpoint.")],
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for all. By default only this machine can connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 8000,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Lowest score that is returned, where a request does not say.")
    ] = 0.5,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures that wait are run together, at most so many.")] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0.0, help="How long a picture waits for others that are being decoded, milliseconds.")
    ] = 10.0,
    mix_sizes: Annotated[
        bool,
        typer.Option(
            "--mix-sizes", help="Also run pictures of different sizes together. The padding changes their results."
        ),
    ] = False,
    queue: Annotated[int, typer.Option(min=1, help="Requests in the server at once; others get 429.")] = 32,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest body of a request, bytes.")] = 20 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture, width times height.")] = 50_000_000,
    max_memory: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            metavar="BYTES",
            help="What the pictures in the server may take together, by an estimate; any if left out.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Longest time for a request, seconds; then it gets 504.")] = 60.0,
    grace: Annotated[
        float, typer.Option(min=0.0, help="On SIGTERM or Ctrl-C: time to answer what is in the server, seconds.")
    ] = 30.0,
    front: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="A folder of static files to serve at /, with an index.html.")
    ] = None,
    processor: ProcessorOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    trust_engine: TrustOption = False,
    strict: StrictOption = False,
    cache: CacheOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When the server is ready, print one line of JSON instead of text.")
    ] = False,
) -> None:
    """Serve a model over HTTP: POST a picture to /predict. SIGTERM answers what is in the server, and ends it."""
    require_extra("serve")
    from detr_export import __version__
    from detr_export.runtimes.predictor import Predictor
    from detr_export.runtimes.serving.identity import identify
    from detr_export.runtimes.serving.options import ServerOptions
    from detr_export.runtimes.serving.server import Server, reserved_port

    options = ServerOptions(
        threshold=threshold,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        mix_sizes=mix_sizes,
        places=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_memory=max_memory,
        timeout=timeout,
        grace=grace,
        front=front,
    )
    with (
        reserved_port(host, port) as taken,
        Predictor.load(
            model, device, threads, trust_engine=trust_engine, processor=value_of(processor), strict=strict, cache=cache
        ) as predictor,
        Server(predictor, taken, options, identify(predictor, model, device, __version__)) as server,
    ):
        if as_json:
            print_json(server.to_dict(), on_one_line=True)  # for scripts that wait for it
        else:
            typer.echo(server.summary())
        server.run()


@app.command()
@reports_errors
def triton(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or an engine with its sidecar.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The model repository; it is made if it is missing.")
    ],
    name: Annotated[
        Optional[str], typer.Option(help="The model's name in the server; the file's, without its suffix, if left out.")
    ] = None,
    version: Annotated[
        Optional[int],
        typer.Option("--version", min=1, metavar="N", help="Add this version to a model that is there; 1 if left out."),
    ] = None,
    keep_versions: Annotated[
        Optional[int], typer.Option(min=1, metavar="N", help="How many versions, the latest, the server has open; 1.")
    ] = None,
    task: Annotated[
        Optional[PredictTask], typer.Option(help="What it does; panoptic if the model draws masks, else detection.")
    ] = None,
    picture_input: Annotated[
        Optional[PictureInput],
        typer.Option("--input", help="What a request has: uint8 pixels, if left out, or the content of an image file."),
    ] = None,
    threshold: Annotated[
        Optional[float],
        typer.Option(min=0.0, max=1.0, help="Lowest score that is returned, where a request does not say; 0.5."),
    ] = None,
    max_batch: Annotated[
        Optional[int],
        typer.Option(min=1, help="Requests that wait are run together, at most so many; 8, or what the model takes."),
    ] = None,
    max_wait_ms: Annotated[
        Optional[float], typer.Option(min=0.0, help="How long a request waits for others, milliseconds; 0.")
    ] = None,
    preferred_batch: Annotated[
        Optional[list[int]],
        typer.Option(min=1, metavar="N", help="A size of batch that runs without waiting longer; may be repeated."),
    ] = None,
    instances: Annotated[
        Optional[int], typer.Option(min=1, help="Copies of the model that run side by side, on each GPU; 1.")
    ] = None,
    warm_up: Annotated[
        Optional[list[str]],
        typer.Option(metavar="HEIGHTxWIDTH", help="Run a picture of this size before the model is ready; may be repeated."),
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="As in predict; cpu for an ONNX file and cuda for an engine if left out.")
    ] = None,
    threads: ThreadsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is there; with --version N that version of it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server, or one more version of a model into it."""
    require_extra("triton")
    require_python(3, 10, "triton")
    from detr_export.triton.options import TritonOptions, parse_size
    from detr_export.triton.repository import write_repository

    options = TritonOptions(
        name=name,
        version=version,
        overwrite=overwrite,
        task=value_of(task),
        form=value_of(picture_input),
        threshold=threshold,
        device=device,
        threads=threads,
        instances=instances,
        max_batch=max_batch,
        max_wait=None if max_wait_ms is None else max_wait_ms / 1000,
        preferred_batches=tuple(preferred_batch or ()),
        keep_versions=keep_versions,
        warm_up=tuple(parse_size(text) for text in warm_up or ()),
    )
    print_result(write_repository(model, output, options), as_json)


@app.command()
@reports_errors
def doctor(as_json: JsonOption = False) -> None:
    """Show what is installed, what of it works here, and what is known to go wrong with it."""
    from detr_export.runtimes.doctor import diagnose

    found = diagnose()
    print_result(found, as_json)


@app.command()
@reports_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, an engine or a checkpoint.")],
    images: Annotated[Path, typer.Option(help="The folder of the annotated images.")],
    annotations: Annotated[
        Path, typer.Option(help="A COCO instances file. Its category ids must be the label ids of the model.")
    ],
    panoptic: Annotated[
        Optional[tuple[Path, Path]],
        typer.Option(metavar="FILE DIR", help="A COCO panoptic file and the folder of its PNGs, for PQ."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="How many images are scored; all if left out.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many images are read and run together.")] = 1,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Lowest score in a panoptic segmentation. AP uses all detections.")
    ] = 0.85,
    against: Annotated[
        Optional[str],
        typer.Option(metavar="CHECKPOINT", help="A checkpoint or file to compare with, scored on the same images."),
    ] = None,
    plots: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            help="A folder for a confusion matrix, precision over recall, and score thresholds: pictures and CSV files.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on annotated images: box AP, mask AP and, with --panoptic, PQ."""
    if overwrite and plots is None:
        raise typer.BadParameter("--overwrite goes with --plots DIR")
    require_python(3, 10, "evaluate")
    from detr_export.benchmarks.accuracy.evaluation import evaluate as evaluate_model

    with TerminalProgress("scoring") as progress:
        found = evaluate_model(
            model,
            images,
            annotations,
            panoptic,
            limit,
            batch,
            device,
            threads,
            threshold,
            against,
            progress,
            plots,
            overwrite,
        )
    print_result(found, as_json)


@app.command("demo-data")
@reports_errors
def demo_data(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder; other splits in it stay.")],
    images: Annotated[int, typer.Option(min=1, help="How many pictures to draw.")],
    split: Annotated[str, typer.Option(help="The split's name. It also decides which pictures are drawn.")] = "train",
    kind: Annotated[
        DemoKind,
        typer.Option(
            help="shapes: what demo was trained on. tables: with their rows, columns and headers. coins: on a table."
        ),
    ] = DemoKind.shapes,
    layout: Annotated[
        DemoLayout,
        typer.Option(help="coco: as COCO's folders. roboflow: as Roboflow exports COCO, with splits train, valid and test."),
    ] = DemoLayout.coco,
    as_json: JsonOption = False,
) -> None:
    """Draw a data set with COCO annotations: shapes in landscapes, tables or coins. Every run draws the same."""
    from detr_export.training.coin_data import COINS
    from detr_export.training.demo_data import SHAPES
    from detr_export.training.drawn_split import write_split
    from detr_export.training.roboflow_split import write_roboflow_split
    from detr_export.training.table_data import TABLES

    data = {DemoKind.shapes: SHAPES, DemoKind.tables: TABLES, DemoKind.coins: COINS}[kind]
    write = write_roboflow_split if layout is DemoLayout.roboflow else write_split
    with TerminalProgress("drawing") as progress:
        write(directory, images, split, data, progress)
    if as_json:
        print_json({"path": str(directory), "split": split, "images": images})
        return
    typer.echo(f"{directory}  {images} images of the split {split}")


@app.command()
@reports_errors
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the checkpoint, its log and its plot.")],
    data: Annotated[
        Optional[Path],
        typer.Option(help="A data set as COCO, Roboflow, CVAT, Label Studio or YOLO write it; its splits train and val."),
    ] = None,
    annotations: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="In place of --data: a COCO annotation file, with --images.")
    ] = None,
    images: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="The folder of the pictures of --annotations.")
    ] = None,
    val_annotations: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="What to validate on; a tenth of --annotations if left out.")
    ] = None,
    val_images: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="The pictures of --val-annotations; --images if left out.")
    ] = None,
    config: Annotated[
        Optional[Path],
        typer.Option(help="A config.json to train from scratch. A preprocessor_config.json beside it is used, too."),
    ] = None,
    checkpoint: Annotated[
        Optional[str],
        typer.Option("--from", metavar="CHECKPOINT", help="A checkpoint to fine-tune; its classes may differ."),
    ] = None,
    task: Annotated[
        Optional[TrainTask],
        typer.Option(help="detection, if left out: boxes. panoptic: boxes of things and stuff, and their masks."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad images and bad annotations out. If left out: they are an error.")
    ] = False,
    epochs: Annotated[
        Optional[int],
        typer.Option(min=0, help="Epochs of the detector; of everything with --jointly. 50 with --from, else 300."),
    ] = None,
    mask_epochs: Annotated[
        Optional[int], typer.Option(min=0, help="Panoptic: epochs of the mask head, on the finished detector; 25.")
    ] = None,
    jointly: Annotated[
        Optional[bool], typer.Option("--jointly", help="Panoptic: train detector and mask head together.")
    ] = None,
    batch: Annotated[Optional[int], typer.Option(min=1, help="Images of a batch, in each process; 2.")] = None,
    accumulate: Annotated[
        Optional[int], typer.Option(min=1, help="Batches of a step, whose gradients are averaged; 1.")
    ] = None,
    learning_rate: Annotated[
        Optional[float], typer.Option(min=0.0, help="Learning rate of all but the backbone; 1e-4.")
    ] = None,
    backbone_learning_rate: Annotated[
        Optional[float], typer.Option(min=0.0, help="Learning rate of the backbone; 1e-5.")
    ] = None,
    weight_decay: Annotated[Optional[float], typer.Option(min=0.0, help="Weight decay of AdamW; 1e-4.")] = None,
    clip: Annotated[
        Optional[float], typer.Option(min=0.0, help="Largest norm of the gradient; 0 for no limit; 0.1.")
    ] = None,
    drop: Annotated[
        Optional[float],
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of a stage after which the learning rates fall to a tenth. 0.8 with --from, else 2/3.",
        ),
    ] = None,
    warmup: Annotated[
        Optional[int],
        typer.Option(
            min=0, help="Steps in which the learning rates rise from 0. With --from a twentieth, at most 500; else 0."
        ),
    ] = None,
    flip: Annotated[Optional[float], typer.Option(min=0.0, max=1.0, help="Probability of a horizontal flip; 0.5.")] = None,
    scale: Annotated[
        Optional[tuple[float, float]],
        typer.Option(metavar="LOW HIGH", help="Range of the image size, relative to the processor's; 0.6 to 1."),
    ] = None,
    crop: Annotated[Optional[float], typer.Option(min=0.0, max=1.0, help="Probability of a random crop; 0.5.")] = None,
    color_jitter: Annotated[
        Optional[float],
        typer.Option(min=0.0, max=1.0, help="Largest relative change of brightness, contrast and saturation; 0."),
    ] = None,
    batch_norm: Annotated[
        Optional[bool],
        typer.Option(
            "--train-batch-norm/--keep-batch-norm",
            help="Whether the whole backbone with its batch norm is trained. If left out: only when it starts from scratch.",
            show_default=False,
        ),
    ] = None,
    freeze_backbone: Annotated[
        Optional[bool], typer.Option("--freeze-backbone", help="Keep the backbone as it is; faster, and for few images.")
    ] = None,
    ema: Annotated[
        Optional[float],
        typer.Option(metavar="DECAY", help="Write a moving average of the weights, such as 0.9997; none if left out."),
    ] = None,
    amp: Annotated[Optional[bool], typer.Option("--amp", help="Compute in mixed precision. CUDA only.")] = None,
    patience: Annotated[
        Optional[int], typer.Option(min=1, help="End a stage after so many validations without a better score.")
    ] = None,
    validate_every: Annotated[Optional[int], typer.Option(min=1, metavar="N", help="Validate every N epochs; 1.")] = None,
    validation_images: Annotated[
        Optional[int], typer.Option(min=1, metavar="N", help="Validate on the first N images; all if left out.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard into the output folder, too.")
    ] = False,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Seed of weights, order, augmentation and dropout; 0.")] = None,
    fp16_weights: Annotated[
        Optional[bool],
        typer.Option("--fp16-weights", "--half", help="Store the weights in fp16, which takes half the space."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare images.")] = 2,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --output, with its data and options. --epochs may be more."),
    ] = False,
    overwrite: OverwriteOption = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda or cuda:N for a GPU.")] = "cpu",
    dilation: DilationOption = None,
    revision: RevisionOption = None,
    processor: ProcessorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train or fine-tune on your own pictures, also under torchrun. Ctrl-C keeps the state for --resume."""
    if checkpoint is None and processor is not None:
        raise typer.BadParameter("--processor goes with --from CHECKPOINT")
    require_extra("export", "train")
    from detr_export.benchmarks.accuracy.validation import find_validation
    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.data.sources import DataSource
    from detr_export.data.splits import read_files
    from detr_export.runtimes.progress import SILENT
    from detr_export.training.processes import is_first_process
    from detr_export.training.request import Request
    from detr_export.training.trainer import train as train_model

    recipe: dict[str, Any] = dict(  # noqa: C408 - fields of TrainingOptions
        task=value_of(task),
        epochs=epochs,
        mask_epochs=mask_epochs,
        jointly=jointly,
        batch_size=batch,
        accumulate=accumulate,
        learning_rate=learning_rate,
        backbone_learning_rate=backbone_learning_rate,
        weight_decay=weight_decay,
        clip=clip,
        drop=drop,
        warmup=warmup,
        flip=flip,
        scale=scale,
        crop=crop,
        color_jitter=color_jitter,
        train_batch_norm=batch_norm,
        freeze_backbone=freeze_backbone,
        ema=ema,
        mixed_precision=amp,
        patience=patience,
        validate_every=validate_every,
        validation_images=validation_images,
        seed=seed,
        fp16_weights=fp16_weights,
    )
    given = {name: value for name, value in recipe.items() if value is not None}
    files = (data, annotations, images, val_annotations, val_images)
    source = None if resume and not any(files) else DataSource(*files)
    with TerminalProgress("training") as progress:
        told = progress if is_first_process() else SILENT
        if resume:
            request = Request.resumed(output, given, source, skip_bad)
        else:
            assert source is not None
            request = Request.new(given, source, skip_bad, fine_tunes=checkpoint is not None)
        split = read_files(request.source.training(request.options.task), request.skip_bad, told)
        validation = find_validation(request.source, request.options.task, request.skip_bad, told)
        start = None if checkpoint is None else load_checkpoint(checkpoint, dilation, revision, value_of(processor))
        result = train_model(
            split,
            output,
            request.options,
            config,
            start,
            device,
            workers,
            resume,
            overwrite,
            progress,
            validation,
            tensorboard,
            request.arguments,
        )
    if result is None:  # the first process of a torchrun reports, and this is another
        return
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(result.summary())


def main() -> None:
    """Entry point of `detr-export`."""
    run_command_line(app, PROGRAM)


if __name__ == "__main__":
    main()
