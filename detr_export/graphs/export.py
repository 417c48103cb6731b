"""From a checkpoint to a verified ONNX file.

The file reaches its place only after ONNX Runtime ran it over the verification grid and it agreed with the PyTorch model.
It replaces what stood there in one move. Batch, height and width stay free, and `pixel_values` and `pixel_mask` share
their names for them.

An fp16 file is compared three times: as it is, with every result rounded to fp16 (`fp16_rounding`), as a GPU does and ONNX
Runtime's CPU does not, and with attentions that also add in fp16, as some GPU kernels do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
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
from detr_export.graphs.int8.options import Int8Options
from detr_export.graphs.int8.tools import require_quantizer
from detr_export.graphs.options import SUFFIX, ExportOptions, check_options
from detr_export.graphs.simplification import simplify
from detr_export.graphs.tracing import count_layer_norms, input_dims, trace
from detr_export.loading import load_model, reference_of_file, reference_session
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.fused_transformer import fuse
from detr_export.runtimes.errors import ArtifactError, VerificationError, missing_extra
from detr_export.runtimes.files import replacing, require_writable, writing
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.metadata import METADATA_KEY, Metadata
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.verification.comparison import Parity, compare, require
from detr_export.verification.end_to_end import EndToEndParity, compare_end_to_end
from detr_export.verification.reference import Reference, reference_of

if TYPE_CHECKING:  # they need onnxruntime, and an export with --no-verify does not
    from detr_export.graphs.int8.drafting import Int8Draft, Int8Report

_PRODUCER = "detr-export"


@dataclass(frozen=True)
class Fp16Report:
    """What fp16 did to a model."""

    weights: Fp16Weights
    rounded: Parity | None = None  # with every result rounded to fp16; None when verification was switched off
    accumulated: Parity | None = None  # the same, with attentions that also add in fp16
    largest: float | None = None  # magnitude over the verification grid of what is stored in fp16; its limit is 65504
    largest_node: str | None = None

    def summary(self) -> str:
        """For people."""
        lines = [self.weights.summary()]
        if self.rounded is not None:
            lines.append(f"every result rounded to fp16: {self.rounded.summary()}")
        if self.accumulated is not None:
            lines.append(f"attentions that also add in fp16: {self.accumulated.summary()}")
        if self.largest is not None:
            lines.append(f"largest fp16 value {self.largest:.4g} of 65504, from {self.largest_node}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    size_bytes: int
    metadata: Metadata
    parity: Parity | None  # None when verification was switched off
    fp16: Fp16Report | None = None  # of an fp16 file, and of the graph that an int8 file with fp16 was made from
    int8: Int8Report | None = None  # of an int8 file; the parity is then that of the float graph

    def summary(self) -> str:
        """For people."""
        about = self.metadata
        verified = self.parity.summary() if self.parity is not None else "not verified: --no-verify"
        lines = [
            f"{self.path}  {self.size_bytes / 1e6:.1f} MB, {about.task}, {about.precision}, opset {about.opset}",
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
        return {"path": str(self.path), "size_bytes": self.size_bytes, "metadata": asdict(self.metadata), **fp16, **int8}


@dataclass
class Draft:
    """A file that is finished and verified, and not yet at its place. Of an int8 file only the float graph is verified."""

    path: Path  # where it lies for now, beside its place
    result: ExportResult  # what it is once it has moved there
    int8: Int8Draft | None = None  # of an int8 file

    def settle_int8(self, with_sensitivity: bool = False) -> None:
        """Writes an int8 file again, as its draft is now.

        Raises:
            ArtifactError: as `Int8Draft.graph`.
        """
        assert self.int8 is not None
        metadata = replace(self.result.metadata, quantization=self.int8.quantization)
        save_model(self.int8.graph(), metadata, self.path)
        size, report = self.path.stat().st_size, self.int8.report(with_sensitivity)
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
    end_to_end = end_to_end_of(checkpoint, options)
    if end_to_end is not None:
        options = replace(options, pixel_mask=False)  # the images of a batch have one size

    # Make the graph.
    precision = options.float_precision
    metadata = describe(
        checkpoint, options.pixel_mask, precision, opset=options.opset, task=options.task, input=options.input
    )
    proto = _make_graph(checkpoint, options, progress)
    fp16: Fp16Report | None = None
    if precision == "fp16":
        progress.stage("casting to fp16")
        proto, weights = to_fp16(proto, not options.fp16_io, options.keep_fp32)
        fp16 = Fp16Report(weights)

    # Write it beside its place, verify it there, and record what the verification found.
    with replacing(output) as temporary:
        parity: Parity | None = None
        if options.verify:
            save_model(proto, metadata, temporary)
            session = reference_session(
                checkpoint, task=options.task, attentions=options.attentions, pixel_mask=options.pixel_mask
            )
            reference = reference_of(session)
            parity = _verify(temporary, reference, progress)
            recorded = parity.to_dict()
            if fp16 is not None:
                fp16 = _verify_rounded(proto, fp16.weights, metadata, temporary, reference, progress)
                recorded["fp16"] = asdict(fp16)
            metadata = replace(metadata, parity=recorded)
        if end_to_end is not None:
            plain, metadata = metadata, described_end_to_end(metadata, end_to_end)
            proto = compose(proto, checkpoint.processor, end_to_end)
            if parity is not None:
                parity = replace(parity, end_to_end=_compare_end_to_end(proto, metadata, plain, temporary.parent, progress))
                require(parity, "the exported file")
                recorded["end_to_end"] = parity.to_dict()["end_to_end"]
        save_model(proto, metadata, temporary)
        draft = Draft(temporary, ExportResult(Path(output), temporary.stat().st_size, metadata, parity, fp16))
        if options.int8 is not None:
            _quantize(draft, proto, options.int8, progress)
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
    from detr_export.runtimes.backends.ort.session import OrtSession
    from detr_export.runtimes.session import require_detr

    with OrtSession(onnx_file(file), spinning=False) as candidate:
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
    proto = onnx.load(onnx_file(file))
    assert session.metadata is not None  # a checkpoint always has it
    plain = replace(session.metadata, precision=metadata.precision)
    with tempfile.TemporaryDirectory(prefix="detr-export-") as folder:
        part = Path(folder) / "plain.onnx"
        save_model(plain_part(proto), plain, part)
        with OrtSession(part, spinning=False) as candidate:
            parity = compare(candidate, reference_of(session), progress=progress)
        return replace(parity, end_to_end=_compare_end_to_end(proto, metadata, plain, Path(folder), progress))


def _require_tools(options: ExportOptions) -> None:
    """Looks for the packages that are used late, so that a missing one is named at once."""
    if options.simplify and importlib.util.find_spec("onnxsim") is None:
        raise missing_extra("onnxsim", "export")
    if options.int8 is not None:
        require_quantizer()
    if options.verify or options.int8 is not None:
        import detr_export.runtimes.backends.ort.session  # noqa: F401  # says what to install


def _make_graph(checkpoint: Checkpoint, options: ExportOptions, progress: Progress) -> onnx.ModelProto:
    """The checked fp32 graph."""
    config = checkpoint.config
    model = DeployedModel(load_model(checkpoint, options.task), options.attentions)
    fuse(model.model.base)
    progress.stage("tracing")
    proto = trace(model, checkpoint, options)
    if options.simplify:
        progress.stage("simplifying")
        proto = simplify(proto)
    check_graph(proto, count_layer_norms(config), options.opset, input_dims(config, options))
    return proto


def _quantize(draft: Draft, proto: onnx.ModelProto, options: Int8Options, progress: Progress) -> None:
    """Turns the draft of a float file into that of an int8 file."""
    from detr_export.graphs.int8.drafting import draft_int8
    from detr_export.runtimes.backends.ort.session import OrtSession
    from detr_export.runtimes.image_runner import ImageRunner

    with OrtSession(draft.path, spinning=False) as session:
        runner = ImageRunner(session)  # it needs the inputs' names and dtypes, and runs nothing
    draft.int8 = draft_int8(proto, runner, options, progress)
    found = draft.result.metadata
    draft.int8.quantization = replace(draft.int8.quantization, float_parity=found.parity)
    draft.result = replace(draft.result, metadata=replace(found, precision="int8", parity=None))
    draft.settle_int8(options.sensitivity)


def _verify(file: Path, reference: Reference, progress: Progress) -> Parity:
    from detr_export.runtimes.backends.ort.session import OrtSession  # a box that exports with --no-verify needs no runtime

    with OrtSession(file, spinning=False) as candidate:
        parity = compare(candidate, reference, progress=progress)
    require(parity, "the exported file")
    return parity


def _compare_end_to_end(
    proto: onnx.ModelProto, metadata: Metadata, plain: Metadata, folder: Path, progress: Progress
) -> EndToEndParity:
    """Compares an end-to-end graph with the plain one in it; their files lie in a folder inside `folder`."""
    from detr_export.runtimes.backends.ort.session import OrtSession

    parts = ((proto, metadata), (pixels_part(proto), metadata), (plain_part(proto), plain))
    with tempfile.TemporaryDirectory(prefix=".detr-export-", dir=folder) as inner, contextlib.ExitStack() as stack:
        sessions = []
        for number, (part, about) in enumerate(parts):
            file = Path(inner) / f"{number}.onnx"
            save_model(part, about, file)
            sessions.append(stack.enter_context(OrtSession(file, spinning=False)))
        whole, before, model = sessions
        return compare_end_to_end(whole, before, model, metadata, progress)


def _verify_rounded(
    proto: onnx.ModelProto,
    weights: Fp16Weights,
    metadata: Metadata,
    output: Path,
    reference: Reference,
    progress: Progress,
) -> Fp16Report:
    """Compares an fp16 model with its checkpoint twice more, as GPUs round; the twins lie beside `output`."""
    from detr_export.graphs.fp16_rounding import Watched, rounding_twin
    from detr_export.runtimes.backends.ort.session import OrtSession

    parities: list[Parity] = []
    for accumulates, what in ((False, "every result rounded to fp16"), (True, "attentions that also add in fp16")):
        twin, names = rounding_twin(proto, accumulates)
        with tempfile.TemporaryDirectory(prefix=".detr-export-", dir=output.parent) as folder:
            file = Path(folder) / "rounded.onnx"
            save_model(twin, metadata, file)
            with Watched(OrtSession(file, spinning=False), names) as candidate:
                parities.append(compare(candidate, reference, progress=progress, stage=f"verifying with {what}"))
                largest, node = candidate.largest
                overflows = candidate.overflows
        if overflows:
            raise VerificationError(
                f"{len(overflows)} results do not fit into fp16, which ends at 65504; the first is that of {overflows[0]}, "
                f"the largest is {largest:.4g}; export with --precision fp32"
            )
        require(parities[-1], f"the exported file, with {what},")
    rounded, accumulated = parities
    return Fp16Report(weights, rounded, accumulated, largest, node)


def save_model(proto: onnx.ModelProto, metadata: Metadata, file: Path) -> None:
    """Writes a graph with its metadata into one file."""
    proto.producer_name = _PRODUCER
    proto.producer_version = metadata.tools.get(_PRODUCER, "")
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    with writing(file):
        onnx.save_model(proto, str(file), format="protobuf", save_as_external_data=False)
