"""From a checkpoint to a verified ONNX file.

The file is written only after it was run in ONNX Runtime over the verification grid and agreed with the PyTorch model; it
replaces what stood at its path in one move. Batch, height and width stay free, and `pixel_values` and `pixel_mask` share
their names for them.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from detr_export.checkpoint import Checkpoint, load_checkpoint
from detr_export.config import DetrConfig
from detr_export.description import describe
from detr_export.graph_checks import check_graph
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.simplification import simplify
from detr_export.verification import Parity, compare, require
from runtimes.errors import ArtifactError, first_line, missing_extra
from runtimes.files import replacing, require_writable, writing
from runtimes.metadata import METADATA_KEY, Metadata
from runtimes.torch_session import TorchSession

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
    simplify: bool = True
    verify: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    size_bytes: int
    metadata: Metadata
    parity: Parity | None  # None when verification was switched off

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), "size_bytes": self.size_bytes, "metadata": asdict(self.metadata)}


def export_onnx(
    checkpoint: Checkpoint,
    output: str | Path,
    options: ExportOptions | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ExportResult:
    """Exports, checks, verifies and only then writes.

    Args:
        checkpoint: from `load_checkpoint`.
        output: the file to write.
        options: defaults when None.
        progress: called with one line for each step.

    Raises:
        OutputError: the output exists, or its folder cannot be written.
        ArtifactError: the graph or its simplification breaks a rule.
        VerificationError: the file disagrees with the checkpoint; nothing was written.
    """
    options = options or ExportOptions()
    require_writable(output, options.overwrite, SUFFIX)
    if options.simplify and importlib.util.find_spec("onnxsim") is None:
        raise missing_extra("onnxsim", "export")
    if options.verify:
        import runtimes.ort_session  # noqa: F401  # where it is missing, better said now than after the tracing
    if options.opset not in OPSETS:
        raise ArtifactError(f"opset is {options.opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if not options.pixel_mask and checkpoint.processor.pad_size is not None:
        raise ArtifactError("the checkpoint's processor pads every image to pad_size; such a model needs its pixel_mask")
    config = checkpoint.config
    model = DeployedModel(load_model(checkpoint, options.task), options.attentions)
    metadata = describe(checkpoint, options.pixel_mask, opset=options.opset, task=options.task)

    progress("tracing")
    proto = _trace(model, config, options)
    if options.simplify:
        progress("simplifying")
        proto = simplify(proto, config.num_channels, options.pixel_mask)
    check_graph(proto, _layer_norms(config), options.opset, _inputs(config, options.pixel_mask))

    parity: Parity | None = None
    with replacing(output) as temporary:
        _save(proto, metadata, temporary)
        if options.verify:
            parity = _verify(temporary, model, checkpoint, metadata, progress)
            metadata = replace(metadata, parity=parity.to_dict())
            _save(proto, metadata, temporary)
    path = Path(output)
    return ExportResult(path, path.stat().st_size, metadata, parity)


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
    from runtimes.ort_session import OrtSession
    from runtimes.predictor import require_detr

    with OrtSession(file, spinning=False) as candidate:
        require_detr(candidate)
        if checkpoint is None:
            checkpoint = candidate.metadata.source.get("name") if candidate.metadata is not None else None
            if checkpoint is None:
                raise ArtifactError(f"{file} does not say which checkpoint it came from; add --checkpoint CHECKPOINT")
        progress(f"reading {checkpoint}")
        loaded = load_checkpoint(checkpoint, dilation, revision)
        mask = any(spec.name == "pixel_mask" for spec in candidate.inputs)
        outputs = {spec.name for spec in candidate.outputs}
        task = "segmentation" if "pred_masks" in outputs else "detection"
        model = DeployedModel(load_model(loaded, task), attentions="cross_attention" in outputs)
        reference = TorchSession(model, describe(loaded, mask, task=task), loaded.config.num_channels)
        return compare(candidate, reference, progress=lambda line: progress(f"verifying {line}"))


class _Positional(nn.Module):
    """The exporter names outputs by position."""

    def __init__(self, model: DeployedModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.model(pixel_values, pixel_mask).values())


def _trace(model: DeployedModel, config: DetrConfig, options: ExportOptions) -> onnx.ModelProto:
    shape = (_TRACED_HEIGHT, _TRACED_WIDTH)
    arguments: tuple[Tensor, ...] = (torch.zeros((_TRACED_BATCH, config.num_channels, *shape)),)
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    dynamic: tuple[dict[int, object], ...] = ({0: batch, 2: height, 3: width},)
    if options.pixel_mask:
        arguments += (torch.ones((_TRACED_BATCH, *shape), dtype=torch.int64),)
        dynamic += ({0: batch, 1: height, 2: width},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not installed
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes about itself
        try:
            program = torch.onnx.export(
                _Positional(model),
                arguments,
                dynamo=True,
                opset_version=options.opset,
                input_names=list(_inputs(config, options.pixel_mask)),
                output_names=list(model.output_names),
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except Exception as error:  # a backbone of timm's may do what cannot be traced, and torch's errors share no base
            raise ArtifactError(f"PyTorch cannot export this model: {first_line(error)}") from error
    assert program is not None  # None only when the exporter is given a file
    return program.model_proto


def _inputs(config: DetrConfig, pixel_mask: bool) -> dict[str, tuple[str | int, ...]]:
    inputs: dict[str, tuple[str | int, ...]] = {"pixel_values": ("batch", config.num_channels, "height", "width")}
    if pixel_mask:
        inputs["pixel_mask"] = ("batch", "height", "width")
    return inputs


def _layer_norms(config: DetrConfig) -> int:
    """Two in each encoder layer, three in each decoder layer, and the decoder's own, once a layer with auxiliary loss."""
    final = config.decoder_layers + 1 if config.auxiliary_loss else 1
    return 2 * config.encoder_layers + 3 * config.decoder_layers + final


def _verify(
    file: Path, model: DeployedModel, checkpoint: Checkpoint, metadata: Metadata, progress: Callable[[str], None]
) -> Parity:
    from runtimes.ort_session import OrtSession  # a box that exports with --no-verify needs no runtime

    reference = TorchSession(model, metadata, checkpoint.config.num_channels)
    with OrtSession(file, spinning=False) as candidate:
        parity = compare(candidate, reference, progress=lambda line: progress(f"verifying {line}"))
    require(parity, "the exported file")
    return parity


def _save(proto: onnx.ModelProto, metadata: Metadata, file: Path) -> None:
    proto.producer_name = _PRODUCER
    proto.producer_version = metadata.tools.get(_PRODUCER, "")
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    with writing(file):
        onnx.save_model(proto, str(file), format="protobuf", save_as_external_data=False)
