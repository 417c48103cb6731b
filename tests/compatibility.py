"""Writes `docs/compatibility.md`: the public classes of transformers' DETR page beside this project's.

    python -m tests.compatibility        # rewrites the file; test_compatibility.py fails while it is out of date

Names, arguments and defaults are read off the two packages' signatures. What differs has its reason here; what has none
comes out as "missing", and fails the test.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from pathlib import Path
from typing import Any

from detr_export.benchmarks.oracle import import_transformers
from detr_export.config import DetrConfig
from detr_export.modeling import outputs
from detr_export.modeling.detr import DetrForObjectDetection, DetrModel
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import DetrFeatureExtractor, DetrImageProcessor, DetrImageProcessorFast

FILE = Path(__file__).parent.parent / "docs" / "compatibility.md"
POST = ("object_detection", "semantic_segmentation", "instance_segmentation", "panoptic_segmentation")
PROCESSOR_METHODS = ("__init__", "preprocess", *(f"post_process_{name}" for name in POST))
# class: ours, and the methods that the page documents; no methods means that the fields are what is public
CLASSES: dict[str, tuple[type, tuple[str, ...]]] = {
    "DetrConfig": (DetrConfig, ("__init__",)),
    "DetrImageProcessor": (DetrImageProcessor, PROCESSOR_METHODS),
    "DetrImageProcessorFast": (DetrImageProcessorFast, PROCESSOR_METHODS),
    "DetrFeatureExtractor": (DetrFeatureExtractor, ("__call__", *PROCESSOR_METHODS[2:])),
    "DetrModelOutput": (outputs.DetrModelOutput, ()),
    "DetrObjectDetectionOutput": (outputs.DetrObjectDetectionOutput, ()),
    "DetrSegmentationOutput": (outputs.DetrSegmentationOutput, ()),
    "DetrModel": (DetrModel, ("forward",)),
    "DetrForObjectDetection": (DetrForObjectDetection, ("forward",)),
    "DetrForSegmentation": (DetrForSegmentation, ("forward",)),
    # A DetrConfig with `pre_norm`, and the models that it makes.
    "TableTransformerConfig": (DetrConfig, ("__init__",)),
    "TableTransformerModel": (DetrModel, ("forward",)),
    "TableTransformerForObjectDetection": (DetrForObjectDetection, ("forward",)),
}
_IGNORED_UPSTREAM = (
    "differs because transformers 4.57 accepts it and does nothing with it; here it does what its documentation says"
)
_NUMPY = 'differs because TensorFlow and JAX are not supported: None, "np" and "pt" are taken'
_TORCHVISION = "not applicable: an option of the torchvision backend; this class computes the same pixels in NumPy"
_CROP = "not applicable: DETR's processors never crop"
_NOT_FETCHED = "differs because nothing is fetched by calling a class; `from_config` fetches the backbone that it asks for"
_BACKBONES = (
    "differs because model types `resnet` and `timm_backbone` are the ones supported; a dictionary goes through `from_dict`"
)
_FIXED_SIZE = "differs because the reading of an int size is fixed, as DETR's own processors have it: its shortest edge"
# What differs: (class or "*", argument) to the reason.
REASONS: dict[tuple[str, str], str] = {
    ("*", "decoder_attention_mask"): _IGNORED_UPSTREAM,
    ("*", "inputs_embeds"): _IGNORED_UPSTREAM,
    ("*", "decoder_inputs_embeds"): _IGNORED_UPSTREAM,
    ("*", "return_tensors"): _NUMPY,
    ("*", "past_key_values"): "not applicable: inherited from language models; no DETR fills it",
    ("DetrConfig", "use_pretrained_backbone"): _NOT_FETCHED,
    ("TableTransformerConfig", "use_pretrained_backbone"): _NOT_FETCHED,
    ("DetrConfig", "backbone_config"): _BACKBONES,
    ("TableTransformerConfig", "backbone_config"): _BACKBONES,
    ("DetrImageProcessorFast", "device"): _TORCHVISION,
    ("DetrImageProcessorFast", "disable_grouping"): _TORCHVISION,
    ("DetrImageProcessorFast", "do_center_crop"): _CROP,
    ("DetrImageProcessorFast", "crop_size"): _CROP,
    ("DetrImageProcessorFast", "default_to_square"): _FIXED_SIZE,
    (
        "DetrImageProcessorFast",
        "do_convert_rgb",
    ): "differs because `load_image` does it, for every image that a `Predictor` is given",
}
# transformers' fast class takes every option of a call at construction too.
_AT_THE_CALL = {
    ("DetrImageProcessorFast", name) for name in ("data_format", "input_data_format", "return_segmentation_masks")
}


def signature(function: Any) -> dict[str, Any]:
    """Arguments and defaults; a `**kwargs: Unpack[...]` is spelt out, other `**kwargs` are left out."""
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            hint = typing.get_type_hints(function, include_extras=True).get(parameter.name)
            for unpacked in typing.get_args(hint):
                arguments |= dict.fromkeys(typing.get_type_hints(unpacked), None)
            continue
        arguments[parameter.name] = parameter.default
    return arguments


def verdict(name: str, argument: str, ours: dict[str, Any], theirs: Any, made: bool = False) -> str:
    """What the table says of one argument; `made` says that it is the constructor's."""
    if made and argument not in ours and (name, argument) in _AT_THE_CALL:
        return "differs because it is an argument of `preprocess` alone"
    reason = REASONS.get((name, argument), REASONS.get(("*", argument)))
    if reason is not None:
        return reason
    if argument not in ours:
        return "missing"
    if theirs in (None, inspect.Parameter.empty) or ours[argument] == theirs:
        return "same"
    if ours[argument] is None:
        return "same"  # None stands for the published default
    return "same" if getattr(theirs, "value", theirs) == getattr(ours[argument], "value", ours[argument]) else "missing"


def rows() -> list[tuple[str, str, str, str]]:
    """(class, method, argument, verdict) for all that is public."""
    transformers = import_transformers()
    modeling = importlib.import_module("transformers.models.detr.modeling_detr")  # outputs are not exported at the top
    table: list[tuple[str, str, str, str]] = []
    for name, (ours, methods) in CLASSES.items():
        theirs = getattr(transformers if methods else modeling, name)
        if not methods:
            fields = {item.name for item in dataclasses.fields(ours)}
            known = dict.fromkeys(fields)
            table += [(name, "", item.name, verdict(name, item.name, known, None)) for item in dataclasses.fields(theirs)]
        for method in methods:
            known = signature(getattr(ours, method)) if hasattr(ours, method) else {}
            if method == "__call__":
                known |= signature(ours.preprocess)
            arguments = signature(getattr(theirs, method))
            if method == "__call__" and hasattr(theirs, "preprocess"):
                arguments |= signature(theirs.preprocess)
            shown = "" if method == "__init__" else method
            table += [
                (name, shown, argument, verdict(name, argument, known, default, method == "__init__"))
                for argument, default in arguments.items()
                if argument not in ("args", "kwargs")
            ]
    return table


_CHECKPOINTS = (
    "## Checkpoints",
    "",
    "| checkpoint | |",
    "|---|---|",
    "| facebook/detr-resnet-50, -101, their DC5 variants and -50-panoptic | detection; boxes, masks and panoptic maps |",
    "| microsoft/table-transformer-detection, -structure-recognition and the v1.1 models | detection; [tables](predict.md#tables) |",
    "| fine-tunes of them | with classes of their own: gaps in the ids, names that occur twice, only a number of labels |",
    "| written by transformers 4 | hub names; `no_timm` backbones; one file, shards, `pytorch_model.bin`, half precision |",
    "| written by transformers 5 | the same, `backbone_config` of `timm_backbone`, and its own parameter names |",
    "| `.pth` of facebookresearch/detr | detection, DC5, panoptic; with or without `--pre_norm`; with or without training state |",
    "| `.pth` of microsoft/table-transformer | bare state dicts; classes and image size are those of the published models |",
    "",
    "Backbones are ResNet-18 to -152 in either naming, and all of timm's that give feature maps (those need timm). A segmentation",
    "model needs three feature maps or more. Whatever was read is written back in the layout that it had: by `train`, and by",
    "`save_pretrained`. Without a network none of the published weights could be tried: the tests use their parameter names and",
    "shapes, directories that transformers 4.57.6 writes, and a record of what transformers 5.24.0 writes and computes",
    "(`make transformers5`).",
    "",
    "Other models with DETR in their name (Conditional, Deformable, RT-DETR, YOLOS) are refused by their `model_type`.",
)


def text() -> str:
    """The whole document."""
    lines = [
        "# Compatibility",
        "",
        *_CHECKPOINTS,
        "",
        "## transformers, class by class",
        "",
        "The public classes, methods and arguments of transformers 4.57.6's DETR and Table Transformer pages, and how this project has them. Written by",
        "`python -m tests.compatibility` from the two packages' signatures; a test fails while it is out of date.",
        "",
        "`DetrImageProcessor` reproduces the PIL backend bit for bit; `DetrImageProcessorFast` the torchvision backend, uint8 pixels",
        "exactly. Models, losses and post-processing are compared with transformers in the tests.",
        "",
        "| class | method | argument or field | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {f'`{method}`' if method else ''} | `{argument}` | {said} |"
        for name, method, argument, said in rows()
    ]
    lines += [
        "",
        "Beyond the signatures:",
        "",
        "- A `no_timm` backbone trains its later stages; transformers freezes all of it, because it looks for names that it does not have.",
        "- With `auxiliary_loss`, `return_dict=False` and labels, transformers raises a TypeError; here the tuple comes back.",
        "- Learned positions take images of up to 50 feature rows and columns of the *coarsest* map; transformers also embeds the",
        "  finer ones, and so fails above 200 pixels.",
        "- `post_process_panoptic_segmentation` numbers segments as transformers does, which can give one id to two classes;",
        "  `Predictor.segment_panoptic` never does.",
        "- Malformed annotations are errors that name the image and the field.",
        "",
        "[From transformers](migration.md) goes through a script step by step, and says what differs there.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
