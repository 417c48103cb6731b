"""From a checkpoint to a verified ONNX file.

The file is written only after it was run in ONNX Runtime over the verification grid and agreed with the PyTorch model; it
replaces what stood at its path in one move. Batch, height and width stay free, and `pixel_values` and `pixel_mask` share
their names for them.

An fp16 file is compared twice: as it is, and with every result rounded to fp16 (`half_rounding`), as a GPU does and ONNX
Runtime's CPU does not.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.config import DetrConfig
from detr_export.graphs.checks import check_graph
from detr_export.graphs.description import describe
from detr_export.graphs.fp16 import HalfWeights, to_half
from detr_export.graphs.simplification import CASE, simplify
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel, Uint8Model
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError, VerificationError, first_line, missing_extra
from detr_export.runtimes.files import replacing, require_writable, writing
from detr_export.runtimes.metadata import METADATA_KEY, UINT8, Metadata
from detr_export.verification.comparison import Parity, compare, make_both, require

OPSETS = range(17, 26)  # 17 has the first LayerNormalization; 25 is the last that was tried
DEFAULT_OPSET = 18  # what the exporter writes without converting
# The traced example. Nothing of it may survive in the file: the grid holds none of these sizes.
_TRACED_BATCH, _TRACED_HEIGHT, _TRACED_WIDTH = 2, 256, 320
_PRODUCER = "detr-export"
SUFFIX = ".onnx"


@dataclass(frozen=True)
class ExportOptions:
    """How to export."""

    task: str | None = None  # "detection" or "segmentation"; the checkpoint's own when None
    attentions: bool = False  # also give the decoder's last cross-attention
    pixel_mask: bool = True  # False: a file that takes images of one size per batch and no mask
    opset: int = DEFAULT_OPSET
    precision: str = "fp32"  # or "fp16", with fp32 islands, see `precision`
    fp16_io: bool = False  # fp16: inputs and outputs too
    keep_fp32: str | None = None  # fp16: "attention" or "transformer" stays fp32, see `precision.KEPT`
    input: str = "float"  # or "uint8": the graph scales the images itself, see `Uint8Model`
    simplify: bool = True
    verify: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class HalfReport:
    """What fp16 did to a model."""

    weights: HalfWeights
    rounded: Parity | None = None  # with every result rounded to fp16; None when verification was switched off
    largest: float | None = None  # magnitude over the verification grid of what is stored in fp16; its limit is 65504
    largest_node: str | None = None

    def summary(self) -> str:
        """For people."""
        lines = [self.weights.summary()]
        if self.rounded is not None:
            lines.append(f"every result rounded to fp16: {self.rounded.summary()}")
            lines.append(f"largest fp16 value {self.largest:.4g} of 65504, from {self.largest_node}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    size_bytes: int
    metadata: Metadata
    parity: Parity | None  # None when verification was switched off
    half: HalfReport | None = None  # of an fp16 file

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        half = {} if self.half is None else {"fp16": asdict(self.half)}
        return {"path": str(self.path), "size_bytes": self.size_bytes, "metadata": asdict(self.metadata), **half}


def export_onnx(
    checkpoint: Checkpoint,
    output: str | Path,
    options: ExportOptions | None = None,
    progress: Callable[[str], None] = lambda step: None,
    accept: Callable[[Path], None] = lambda file: None,
) -> ExportResult:
    """Exports, checks, verifies and only then writes.

    Args:
        checkpoint: from `load_checkpoint`.
        output: the file to write.
        options: defaults when None.
        progress: called with one line for each step.
        accept: called with the finished file before it is moved to `output`; what it raises ends the export, and nothing is
            written.

    Raises:
        OutputError: the output exists, or its folder cannot be written.
        ArtifactError: options contradict each other, or the graph or its simplification breaks a rule.
        VerificationError: the file disagrees with the checkpoint; nothing was written.
    """
    options = options or ExportOptions()
    require_writable(output, options.overwrite, SUFFIX)
    if options.simplify and importlib.util.find_spec("onnxsim") is None:
        raise missing_extra("onnxsim", "export")
    if options.verify:
        import detr_export.runtimes.backends.ort.session  # noqa: F401  # where it is missing, better said now than after the tracing
    _check_options(options, checkpoint)
    config = checkpoint.config
    model = DeployedModel(load_model(checkpoint, options.task), options.attentions)
    metadata = describe(
        checkpoint, options.pixel_mask, options.precision, opset=options.opset, task=options.task, input=options.input
    )

    progress("tracing")
    proto = _trace(model, checkpoint, options)
    if options.simplify:
        progress("simplifying")
        proto = simplify(proto, make_both(CASE, config.num_channels, metadata, seed=0)[0])
    check_graph(proto, _layer_norms(config), options.opset, _inputs(config, options))
    half: HalfReport | None = None
    if options.precision == "fp16":
        progress("casting to fp16")
        proto, weights = to_half(proto, not options.fp16_io, options.keep_fp32)
        half = HalfReport(weights)

    parity: Parity | None = None
    with replacing(output) as temporary:
        _save(proto, metadata, temporary)
        if options.verify:
            reference = TorchSession(model, describe(checkpoint, options.pixel_mask, task=options.task), config.num_channels)
            parity = _verify(temporary, reference, progress)
            recorded = parity.to_dict()
            if half is not None:
                half = _verify_rounded(proto, half.weights, metadata, temporary, reference, progress)
                recorded["fp16"] = asdict(half)
            metadata = replace(metadata, parity=recorded)
            _save(proto, metadata, temporary)
        accept(temporary)
    path = Path(output)
    return ExportResult(path, path.stat().st_size, metadata, parity, half)


def verify_file(
    file: str | Path,
    checkpoint: str | Path | None = None,
    dilation: bool | None = None,
    revision: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Compares an exported file with a checkpoint, as the export does; `verification.require` makes it a gate.

    When `checkpoint` is None it is the one that the file names as its source.

    Raises:
        ArtifactError: the file is missing, damaged, not a DETR, or names no source where one is needed.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    from detr_export.runtimes.backends.ort.session import OrtSession
    from detr_export.runtimes.session import require_detr

    with OrtSession(file, spinning=False) as candidate:
        require_detr(candidate)
        if checkpoint is None:
            checkpoint = candidate.metadata.source.get("name") if candidate.metadata is not None else None
            if checkpoint is None:
                raise ArtifactError(f"{file} does not say which checkpoint it came from; add --checkpoint CHECKPOINT")
        progress(f"reading {checkpoint}")
        loaded = load_checkpoint(checkpoint, dilation, revision)
        mask = any(spec.name in ("pixel_mask", "valid_sizes") for spec in candidate.inputs)
        outputs = {spec.name for spec in candidate.outputs}
        task = "segmentation" if "pred_masks" in outputs else "detection"
        model = DeployedModel(load_model(loaded, task), attentions="cross_attention" in outputs)
        reference = TorchSession(model, describe(loaded, mask, task=task), loaded.config.num_channels)
        return compare(candidate, reference, progress=lambda line: progress(f"verifying {line}"))


def _check_options(options: ExportOptions, checkpoint: Checkpoint) -> None:
    for name, value, known in (
        ("precision", options.precision, ("fp32", "fp16")),
        ("input", options.input, ("float", UINT8)),
    ):
        if value not in known:
            raise ArtifactError(f"{name} is {value!r}; expected {' or '.join(known)}")
    if options.opset not in OPSETS:
        raise ArtifactError(f"opset is {options.opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if options.precision != "fp16" and (options.fp16_io or options.keep_fp32 is not None):
        raise ArtifactError("fp16 inputs and outputs, and parts that stay fp32, are of an fp16 file; add --precision fp16")
    if options.precision == "fp16" and not options.simplify:
        raise ArtifactError("an fp16 file is made from the simplified graph; leave --no-simplify out")
    if options.input == UINT8 and checkpoint.config.num_channels != 3:
        raise ArtifactError(
            f"the checkpoint takes images of {checkpoint.config.num_channels} channels, and uint8 images are RGB; "
            "use --input float"
        )
    if not options.pixel_mask and checkpoint.processor.pad_size is not None:
        raise ArtifactError("the checkpoint's processor pads every image to pad_size; such a model needs its pixel_mask")


class _Positional(nn.Module):
    """The exporter names outputs by position."""

    def __init__(self, model: DeployedModel | Uint8Model) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixel_values: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.model(pixel_values, sizes).values())


def _trace(model: DeployedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    config, processor = checkpoint.config, checkpoint.processor
    height, width, channels = _TRACED_HEIGHT, _TRACED_WIDTH, config.num_channels
    module: DeployedModel | Uint8Model = model
    if options.input == UINT8:
        factor = processor.rescale_factor if processor.do_rescale else None
        normalization = (processor.image_mean, processor.image_std) if processor.do_normalize else (None, None)
        module = Uint8Model(model, factor, *normalization)
        images = torch.zeros((_TRACED_BATCH, height, width, channels), dtype=torch.uint8)
        mask = torch.tensor([(height, width)] * _TRACED_BATCH)
    else:
        images = torch.zeros((_TRACED_BATCH, channels, height, width))
        mask = torch.ones((_TRACED_BATCH, height, width), dtype=torch.int64)
    names = _inputs(config, options)
    sizes = {name: torch.export.Dim(name) for name in ("batch", "height", "width")}
    dynamic = tuple(
        {axis: sizes[name] for axis, name in enumerate(shape) if isinstance(name, str)} for shape in names.values()
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not installed
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes about itself
        try:
            program = torch.onnx.export(
                _Positional(module),
                (images, mask) if options.pixel_mask else (images,),
                dynamo=True,
                opset_version=options.opset,
                input_names=list(names),
                output_names=list(model.output_names),
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except Exception as error:  # a backbone of timm's may do what cannot be traced, and torch's errors share no base
            raise ArtifactError(f"PyTorch cannot export this model: {first_line(error)}") from error
    assert program is not None  # None only when the exporter is given a file
    proto = program.model_proto
    if options.input == UINT8:
        _measure_after_cast(proto)
    return proto


def _measure_after_cast(model: onnx.ModelProto) -> None:
    """Takes the sizes of the images from their float copy: TensorRT reads a uint8 input in a Cast and nowhere else."""
    (cast,) = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == "pixel_values"]
    rest = [node for node in model.graph.node if node is not cast]
    for node in rest:
        if node.op_type == "Shape" and node.input[0] == "pixel_values":
            node.input[0] = cast.output[0]
    nodes = [copy.deepcopy(node) for node in (cast, *rest)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _inputs(config: DetrConfig, options: ExportOptions) -> dict[str, tuple[str | int, ...]]:
    if options.input == UINT8:
        images: tuple[str | int, ...] = ("batch", "height", "width", config.num_channels)
        return {"pixel_values": images, **({"valid_sizes": ("batch", 2)} if options.pixel_mask else {})}
    inputs: dict[str, tuple[str | int, ...]] = {"pixel_values": ("batch", config.num_channels, "height", "width")}
    if options.pixel_mask:
        inputs["pixel_mask"] = ("batch", "height", "width")
    return inputs


def _layer_norms(config: DetrConfig) -> int:
    """Two in each encoder layer, three in each decoder layer, and the decoder's own, once a layer with auxiliary loss."""
    final = config.decoder_layers + 1 if config.auxiliary_loss else 1
    return 2 * config.encoder_layers + 3 * config.decoder_layers + final


def _verify(file: Path, reference: TorchSession, progress: Callable[[str], None]) -> Parity:
    from detr_export.runtimes.backends.ort.session import OrtSession  # a box that exports with --no-verify needs no runtime

    with OrtSession(file, spinning=False) as candidate:
        parity = compare(candidate, reference, progress=lambda line: progress(f"verifying {line}"))
    require(parity, "the exported file")
    return parity


def _verify_rounded(
    proto: onnx.ModelProto,
    weights: HalfWeights,
    metadata: Metadata,
    output: Path,
    reference: TorchSession,
    progress: Callable[[str], None],
) -> HalfReport:
    """Compares an fp16 model with its checkpoint once more, with every result rounded; the twin lies beside `output`."""
    from detr_export.graphs.fp16_rounding import Watched, rounding_twin
    from detr_export.runtimes.backends.ort.session import OrtSession

    twin, names = rounding_twin(proto)
    with tempfile.TemporaryDirectory(prefix=".detr-export-", dir=output.parent) as folder:
        file = Path(folder) / "rounded.onnx"
        _save(twin, metadata, file)
        with Watched(OrtSession(file, spinning=False), names) as candidate:
            parity = compare(candidate, reference, progress=lambda line: progress(f"verifying fp16 rounding {line}"))
            largest, node = candidate.largest
            overflows = candidate.overflows
    if overflows:
        raise VerificationError(
            f"{len(overflows)} results do not fit into fp16, which ends at 65504; the first is that of {overflows[0]}, the "
            f"largest is {largest:.4g}; export with --precision fp32"
        )
    require(parity, "the exported file, with every result rounded to fp16,")
    return HalfReport(weights, parity, largest, node)


def _save(proto: onnx.ModelProto, metadata: Metadata, file: Path) -> None:
    proto.producer_name = _PRODUCER
    proto.producer_version = metadata.tools.get(_PRODUCER, "")
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    with writing(file):
        onnx.save_model(proto, str(file), format="protobuf", save_as_external_data=False)
