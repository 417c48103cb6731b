"""From a checkpoint to a verified ONNX file.

The file reaches its place only after ONNX Runtime ran it over the verification grid and it agreed with the PyTorch model.
It replaces what stood there in one move. Batch, height and width stay free, and `pixel_values` and `pixel_mask` share
their names for them.

A segmentation model becomes two files, see `runtimes.mask_head`, unless one graph is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.checks import check_graph
from detr_export.graphs.description import describe
from detr_export.graphs.end_to_end.composing import (
    compose,
    described_end_to_end,
    end_to_end_of,
    pixels_part,
    plain_part,
)
from detr_export.graphs.fp16.casting import Fp16Weights, to_fp16
from detr_export.graphs.fp16_gate import Fp16Report, verify_rounded
from detr_export.graphs.int8.options import Int8Options
from detr_export.graphs.int8.tools import require_quantizer
from detr_export.graphs.mask_head import mask_head_dims, name_shared_outputs, trace_mask_head
from detr_export.graphs.options import SUFFIX, ExportOptions, check_options, makes_two_files
from detr_export.graphs.parts import Parts, save_model, save_parts
from detr_export.graphs.reading import load_graph
from detr_export.graphs.simplification import simplify
from detr_export.graphs.tracing import count_layer_norms, input_dims, trace
from detr_export.loading import load_model, reference_of_file, reference_session
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.folded_batch_norm import fold_batch_norm
from detr_export.modeling.fused_transformer import fuse
from detr_export.runtimes.detr_interface import require_detr
from detr_export.runtimes.errors import ArtifactError, missing_extra
from detr_export.runtimes.files import replacing_together, require_writable
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.mask_head import mask_head_file
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.temporary import temporary_folder
from detr_export.verification.comparison import Parity, compare, require
from detr_export.verification.end_to_end import EndToEndParity, compare_end_to_end
from detr_export.verification.reference import Reference, reference_of

if TYPE_CHECKING:  # they need onnxruntime, and an export with --no-verify does not
    from detr_export.graphs.int8.drafting import Int8Draft, Int8Report


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    size_bytes: int  # of all files
    metadata: Metadata
    parity: Parity | None  # None when verification was switched off
    fp16: Fp16Report | None = None  # of an fp16 file, and of the graph that an int8 file with fp16 was made from
    int8: Int8Report | None = None  # of an int8 file; the parity is then that of the float graph
    mask_head: Path | None = None  # the file that draws the masks, if that is another one

    def summary(self) -> str:
        """For people."""
        about = self.metadata
        beside = "" if self.mask_head is None else f" and {self.mask_head.name}"
        verified = self.parity.summary() if self.parity is not None else "not verified: --no-verify"
        lines = [
            f"{self.path}{beside}  {self.size_bytes / 1e6:.1f} MB, {about.task}, {about.precision}, opset {about.opset}",
            f"the float graph before int8: {verified}" if self.int8 is not None else verified,
        ]
        if self.fp16 is not None:
            lines.append(self.fp16.summary())
        if self.int8 is not None:
            lines.append(self.int8.summary())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fp16 = {} if self.fp16 is None else {"fp16": asdict(self.fp16)}
        int8 = {} if self.int8 is None else {"int8": self.int8.to_dict()}
        beside = {} if self.mask_head is None else {"mask_head": str(self.mask_head)}
        about = {"size_bytes": self.size_bytes, "metadata": asdict(self.metadata)}
        return {"path": str(self.path), **beside, **about, **fp16, **int8}


@dataclass
class Draft:
    """A file that is finished and verified, and not yet at its place. Of an int8 file only the float graph is verified."""

    path: Path  # where it lies for now, beside its place
    result: ExportResult  # what it is once it has moved there
    parts: Parts  # its graphs; of an int8 file the float ones
    int8: Int8Draft | None = None  # of an int8 file

    def settle_int8(self, with_sensitivity: bool = False) -> None:
        """Writes an int8 file again, as its draft is now.

        Raises:
            ArtifactError: as `Int8Draft.graph`.
        """
        assert self.int8 is not None
        metadata = replace(self.result.metadata, quantization=self.int8.quantization)
        metadata = save_parts(Parts(self.int8.graph(), self.parts.mask_head), metadata, self.path)
        size, report = _size_of(self.path), self.int8.report(with_sensitivity)
        self.result = replace(self.result, size_bytes=size, metadata=metadata, int8=report)


@contextlib.contextmanager
def exported(
    checkpoint: Checkpoint, output: str | Path, options: ExportOptions | None = None, progress: Progress = SILENT
) -> Iterator[Draft]:
    """Exports, checks and verifies, and lets the block have the last word.

    When the block ends, the file moves to `output`. When the block raises, nothing is written.

        with exported(checkpoint, "model.onnx") as draft:
            require_accuracy(draft.path, ...)

    Args:
        checkpoint: from `load_checkpoint`.
        output: the file to write.
        options: defaults when None.
        progress: is told each stage.

    Raises:
        OutputError: the output exists, or its folder cannot be written.
        ArtifactError: options contradict each other, or the graph or its simplification breaks a rule.
        VerificationError: the file disagrees with the checkpoint; nothing was written.
        BackendError: a package that the export needs is not installed.
    """
    # Refuse what cannot work before tracing, which takes a minute.
    options = options or ExportOptions()
    require_writable(output, options.overwrite, SUFFIX)
    _require_tools(options)
    check_options(options, checkpoint)
    if makes_two_files(options, checkpoint):
        require_writable(mask_head_file(Path(output)), options.overwrite)
    end_to_end = end_to_end_of(checkpoint, options)
    if end_to_end is not None:
        options = replace(options, pixel_mask=False)  # the images of a batch have one size

    # Make the graphs.
    precision = options.float_precision
    metadata = describe(
        checkpoint, options.pixel_mask, precision, opset=options.opset, task=options.task, input=options.input
    )
    parts = _make_parts(checkpoint, options, progress)
    fp16: Fp16Report | None = None
    if precision == "fp16":
        progress.stage("casting to fp16")
        parts, weights = _to_fp16(parts, options)
        fp16 = Fp16Report(weights)

    # Write them beside their place, verify them there, and record what the verification found.
    with replacing_together(output) as temporary:
        parity: Parity | None = None
        if options.verify:
            session = reference_session(
                checkpoint, task=options.task, attentions=options.attentions, pixel_mask=options.pixel_mask
            )
            reference = reference_of(session)
            save_parts(parts, metadata, temporary)
            parity = _verify(temporary, reference, progress)
            recorded = parity.to_dict()
            if fp16 is not None:
                fp16 = verify_rounded(parts, fp16.weights, metadata, temporary, reference, progress)
                recorded["fp16"] = asdict(fp16)
            metadata = replace(metadata, parity=recorded)
        if end_to_end is not None:
            plain, metadata = metadata, described_end_to_end(metadata, end_to_end)
            parts = Parts(compose(parts.model, checkpoint.processor, end_to_end))
            if parity is not None:
                found = _compare_end_to_end(parts.model, metadata, plain, temporary.parent, progress)
                parity = replace(parity, end_to_end=found)
                require(parity, "the exported file")
                recorded["end_to_end"] = parity.to_dict()["end_to_end"]
        metadata = save_parts(parts, metadata, temporary)
        draft = Draft(temporary, _result(Path(output), temporary, metadata, parity, fp16), parts)
        if options.int8 is not None:
            _quantize(draft, options.int8, progress)
        yield draft


def export_onnx(
    checkpoint: Checkpoint, output: str | Path, options: ExportOptions | None = None, progress: Progress = SILENT
) -> ExportResult:
    """Exports, checks, verifies and only then writes; arguments and errors as in `exported`.

    Raises:
        ArtifactError: the file would be int8 and nothing would verify it; `exported` lets the caller score it.
    """
    if options is not None and options.int8 is not None and options.verify:
        raise ArtifactError(
            "an int8 file cannot be compared number by number, its accuracy has to be measured: score it inside of "
            "`exported`, or export it with verify=False"
        )
    with exported(checkpoint, output, options, progress) as draft:
        pass
    return draft.result


def verify_file(
    file: str | Path,
    checkpoint: str | Path | None = None,
    dilation: bool | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Parity:
    """Compares an exported file with a checkpoint, as the export does; `verification.require` makes it a gate.

    When `checkpoint` is None it is the one that the file names as its source.

    Raises:
        ArtifactError: the file is missing, damaged, not a DETR, int8, or names no source where one is needed.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    with open_session(file, spinning=False) as candidate:
        require_detr(candidate)
        if candidate.metadata is not None and candidate.metadata.quantization is not None:
            raise ArtifactError(
                f"{file} is int8, which no comparison of numbers can judge; measure its accuracy with: "
                f"detr-export evaluate {file} --against CHECKPOINT"
            )
        session = reference_of_file(file, candidate, checkpoint, dilation, revision, progress)
        if candidate.metadata is None or candidate.metadata.end_to_end is None:
            return compare(candidate, reference_of(session), progress=progress)
        metadata = candidate.metadata
    # The plain graph in an end-to-end file, and then the whole
    proto = load_graph(onnx_file(file))
    assert session.metadata is not None  # a checkpoint always has it
    plain = replace(session.metadata, precision=metadata.precision)
    with temporary_folder() as folder:
        part = folder / "plain.onnx"
        save_model(plain_part(proto), plain, part)
        with open_session(part, spinning=False) as candidate:
            parity = compare(candidate, reference_of(session), progress=progress)
        return replace(parity, end_to_end=_compare_end_to_end(proto, metadata, plain, folder, progress))


def _require_tools(options: ExportOptions) -> None:
    """Looks for the packages that are used late, so that a missing one is named at once."""
    if options.simplify and importlib.util.find_spec("onnxsim") is None:
        raise missing_extra("onnxsim", "export")
    if options.int8 is not None:
        require_quantizer()
    if options.verify or options.int8 is not None:
        import detr_export.runtimes.backends.ort.session  # noqa: F401  # says what to install


def _make_parts(checkpoint: Checkpoint, options: ExportOptions, progress: Progress) -> Parts:
    """The checked fp32 graphs."""
    config = checkpoint.config
    apart = makes_two_files(options, checkpoint)
    model = DeployedModel(load_model(checkpoint, options.task), options.attentions, masks_apart=apart)
    fold_batch_norm(model.model.base.backbone.conv_encoder)
    fuse(model.model.base)
    progress.stage("tracing")
    parts = Parts(trace(model, checkpoint, options))
    if model.masks_apart:
        parts = Parts(parts.model, trace_mask_head(model, checkpoint, options))
    dims = {} if parts.mask_head is None else mask_head_dims(parts.mask_head)
    if options.simplify:
        progress.stage("simplifying")
        parts = parts.each(simplify)
    check_graph(parts.model, count_layer_norms(config), options.opset, input_dims(config, options))
    if parts.mask_head is not None:
        check_graph(parts.mask_head, 0, options.opset, dims)
        name_shared_outputs(parts.model, dims)
    return parts


def _to_fp16(parts: Parts, options: ExportOptions) -> tuple[Parts, Fp16Weights]:
    weights = []

    def cast(graph: onnx.ModelProto) -> onnx.ModelProto:
        typed, found = to_fp16(graph, not options.fp16_io, options.keep_fp32)
        weights.append(found)
        return typed

    return parts.each(cast), Fp16Weights.total(weights)


def _quantize(draft: Draft, options: Int8Options, progress: Progress) -> None:
    """Turns the draft of a float file into that of an int8 file. A mask head in a file of its own stays float."""
    from detr_export.graphs.int8.drafting import draft_int8
    from detr_export.runtimes.image_runner import ImageRunner

    with open_session(draft.path, spinning=False) as session:
        runner = ImageRunner(session)  # it needs the inputs' names and dtypes, and runs nothing
    draft.int8 = draft_int8(draft.parts.model, runner, options, progress)
    found = draft.result.metadata
    draft.int8.quantization = replace(draft.int8.quantization, float_parity=found.parity)
    draft.result = replace(draft.result, metadata=replace(found, precision="int8", parity=None))
    draft.settle_int8(options.sensitivity)


def _verify(file: Path, reference: Reference, progress: Progress) -> Parity:
    with open_session(file, spinning=False) as candidate:
        parity = compare(candidate, reference, progress=progress)
    require(parity, "the exported file")
    return parity


def _result(
    output: Path, temporary: Path, metadata: Metadata, parity: Parity | None, fp16: Fp16Report | None
) -> ExportResult:
    """What the files at `temporary` are once they have moved to `output`."""
    mask_head = None if metadata.mask_head is None else mask_head_file(output)
    return ExportResult(output, _size_of(temporary), metadata, parity, fp16, mask_head=mask_head)


def _size_of(temporary: Path) -> int:
    """Bytes of all files that will move to their place."""
    return sum(file.stat().st_size for file in temporary.parent.iterdir())


def _compare_end_to_end(
    proto: onnx.ModelProto, metadata: Metadata, plain: Metadata, folder: Path, progress: Progress
) -> EndToEndParity:
    """Compares an end-to-end graph with the plain one in it; their files lie in a folder inside `folder`."""
    from detr_export.runtimes.backends.ort.session import OrtSession

    parts = ((proto, metadata), (pixels_part(proto), metadata), (plain_part(proto), plain))
    with temporary_folder(beside=folder / "part.onnx") as inner, contextlib.ExitStack() as stack:
        sessions = []
        for number, (part, about) in enumerate(parts):
            file = inner / f"{number}.onnx"
            save_model(part, about, file)
            sessions.append(stack.enter_context(OrtSession(file, spinning=False)))
        whole, before, model = sessions
        return compare_end_to_end(whole, before, model, metadata, progress)
