"""What can be chosen on the command line of `detr-export`: the values of its options, and the options of several commands.

Annotations stay unquoted here, as in `terminal`.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class ExportTask(str, Enum):
    """What an exported file does."""

    auto = "auto"
    detection = "detection"
    segmentation = "segmentation"


class Precision(str, Enum):
    """What an exported file computes in."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class FloatPrecision(str, Enum):
    """What the float part of an int8 file computes in."""

    fp32 = "fp32"
    fp16 = "fp16"


class Int8Scope(str, Enum):
    """Which layers of a file are int8."""

    backbone = "backbone"
    encoder = "encoder"
    all = "all"


class CalibrationMethod(str, Enum):
    """How the scales of an int8 file follow from the values that were seen."""

    minmax = "minmax"
    entropy = "entropy"
    percentile = "percentile"
    mse = "mse"


class KeptPart(str, Enum):
    """What may stay fp32 in an fp16 file."""

    attention = "attention"
    transformer = "transformer"


class ImageInput(str, Enum):
    """What an exported file takes."""

    float = "float"
    uint8 = "uint8"


class ResizeKind(str, Enum):
    """How an end-to-end file resizes."""

    matmul = "matmul"
    operator = "operator"


class ProcessorBackend(str, Enum):
    """Whose pixels a model gets."""

    pil = "pil"
    torchvision = "torchvision"


class TrainTask(str, Enum):
    """What is trained."""

    detection = "detection"
    panoptic = "panoptic"


class PredictTask(str, Enum):
    """What is predicted."""

    detection = "detection"
    panoptic = "panoptic"
    instances = "instances"
    semantic = "semantic"
    tables = "tables"


class PictureInput(str, Enum):
    """What a request to Triton has."""

    pixels = "pixels"
    encoded = "encoded"


class PredictEngine(str, Enum):
    """What spreads the pictures."""

    local = "local"  # threads of this process
    ray = "ray"  # Ray Data: processes of this machine, or of many


class ResultFormat(str, Enum):
    """How results are written."""

    json = "json"
    coco = "coco"
    csv = "csv"
    parquet = "parquet"
    yolo = "yolo"
    labelme = "labelme"


class DemoKind(str, Enum):
    """What is drawn."""

    shapes = "shapes"
    tables = "tables"
    coins = "coins"


class DemoLayout(str, Enum):
    """How drawn data lies in its folder."""

    coco = "coco"
    roboflow = "roboflow"


def value_of(choice: Optional[Enum]) -> Optional[str]:
    """The text of a choice that may be left out."""
    return None if choice is None else str(choice.value)


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="A directory, an original .pth file, a hub id like facebook/detr-resnet-50, or one of this package: demo, "
        "demo-tables.",
    ),
]
DilationOption = Annotated[
    Optional[bool],
    typer.Option("--dilation/--no-dilation", help="For .pth files: whether it is a DC5 model; its weights do not show it."),
]
RevisionOption = Annotated[Optional[str], typer.Option(help="For hub ids: a branch, tag or commit.")]
ProcessorOption = Annotated[
    Optional[ProcessorBackend],
    typer.Option(
        help="For directories and hub ids: whose pixels the model gets. If left out, the class that the checkpoint names; "
        "where both have one name, the one that transformers opens."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, or cuda or cuda:N for a GPU. ONNX files also take openvino, tensorrt[:N] and tensorrt-rtx[:N]. "
        "A device that is not there is an error."
    ),
]
GpuOption = Annotated[str, typer.Option("--device", help="The GPU to build on: cuda or cuda:N.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-engine", help="Run an engine although no sidecar names it. An engine is code.")
]
CacheOption = Annotated[
    Optional[Path],
    typer.Option(
        "--cache",
        metavar="DIR",
        help="With --device openvino: keep compiled models there, to open them faster the next time.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse an engine that was never compared with its checkpoint.")
]
