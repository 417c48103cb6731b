"""How a checkpoint is exported, and which combinations of options are refused."""

from __future__ import annotations

from dataclasses import dataclass

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.int8.options import Int8Options, check_int8_options
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import MATMUL, RGB, UINT8

OPSETS = range(17, 26)  # 17 has the first LayerNormalization; 25 is the last that was tried
DEFAULT_OPSET = 18  # what the exporter writes without converting
SUFFIX = ".onnx"


@dataclass(frozen=True)
class ExportOptions:
    """How to export."""

    task: str | None = None  # "detection" or "segmentation"; the checkpoint's own when None
    attentions: bool = False  # also give the decoder's last cross-attention
    pixel_mask: bool = True  # False: the file takes no mask, and images of one size in each batch
    opset: int = DEFAULT_OPSET
    precision: str = "fp32"  # or "fp16", with fp32 islands, see `graphs.fp16.islands`; or "int8", with `int8`
    int8: Int8Options | None = None  # int8: how, and on which pictures
    fp16_io: bool = False  # fp16: inputs and outputs are fp16, too
    keep_fp32: str | None = None  # fp16: "attention" or "transformer" stays fp32, see `graphs.fp16.islands.KEPT`
    input: str = "float"  # or "uint8": the graph scales the images itself, see `Uint8Model`
    end_to_end: bool = False  # the graph holds the processor and post-processing, too, see `graphs.end_to_end`
    color: str = RGB  # end to end: or "bgr", the order of the image's channels
    resize: str = MATMUL  # end to end: or "operator", ONNX's own Resize
    top_k: int | None = None  # end to end: how many queries are returned; all when None
    one_graph: bool = False  # of a segmentation model: one file that draws all masks, and not two, see `runtimes.mask_head`
    simplify: bool = True
    verify: bool = True
    overwrite: bool = False

    @property
    def float_precision(self) -> str:
        """What the float graph computes in: an int8 file is made from one."""
        return self.precision if self.int8 is None else self.int8.float_precision


def check_options(options: ExportOptions, checkpoint: Checkpoint) -> None:
    """Refuses options that are unknown, contradict each other, or do not fit the checkpoint.

    Raises:
        ArtifactError: says which option, and what to do.
    """
    for name, value, known in (
        ("precision", options.precision, ("fp32", "fp16", "int8")),
        ("input", options.input, ("float", UINT8)),
    ):
        if value not in known:
            raise ArtifactError(f"{name} is {value!r}; expected {' or '.join(known)}")
    if options.opset not in OPSETS:
        raise ArtifactError(f"opset is {options.opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if (options.precision == "int8") != (options.int8 is not None):
        raise ArtifactError("an int8 file needs pictures to calibrate on, and no other file does; add --calibration DIR")
    if options.int8 is not None:
        check_int8_options(options.int8, options.opset)
        if options.end_to_end:
            raise ArtifactError("an end-to-end file cannot be int8 yet; leave --end-to-end out, or choose another precision")
        if options.int8.scope == "all" and makes_two_files(options, checkpoint):
            raise ArtifactError("a mask head in a file of its own stays float; for --int8-scope all add --one-graph")
    if options.float_precision != "fp16" and (options.fp16_io or options.keep_fp32 is not None):
        raise ArtifactError("only an fp16 file has fp16 inputs and outputs, or parts that stay fp32; add --precision fp16")
    if options.precision != "fp32" and not options.simplify:
        raise ArtifactError(f"an {options.precision} file is made from the simplified graph; leave --no-simplify out")
    if options.input == UINT8 and checkpoint.config.num_channels != 3:
        raise ArtifactError(
            f"the checkpoint takes images of {checkpoint.config.num_channels} channels, and uint8 images are RGB; "
            "use --input float"
        )
    if options.one_graph and (options.end_to_end or (options.task or checkpoint.task) != "segmentation"):
        raise ArtifactError("a detector and an end-to-end file have one graph anyway; leave --one-graph out")
    if not options.pixel_mask and checkpoint.processor.pad_size is not None:
        raise ArtifactError("the checkpoint's processor pads every image to pad_size; such a model needs its pixel_mask")


def makes_two_files(options: ExportOptions, checkpoint: Checkpoint) -> bool:
    """Whether an export writes a detector and its mask head."""
    return (options.task or checkpoint.task) == "segmentation" and not (options.one_graph or options.end_to_end)
