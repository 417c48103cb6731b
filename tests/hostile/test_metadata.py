"""The metadata of ONNX files: every field with values that nobody should believe, refused when the file is opened."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes.errors import ArtifactError, DetrError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.predictor import Predictor
from tests.hostile.onnx_files import DOCUMENT, END_TO_END, detr

INT8 = {
    **DOCUMENT,
    "precision": "int8",
    "quantization": {
        "scope": "encoder",
        "method": "percentile",
        "images": 100,
        "float_precision": "fp32",
        "kept_float": {"layer": "too large"},
        "float_parity": DOCUMENT["parity"],
        "accuracy": {"scores": {"box AP": 0.4}, "difference": {"box AP": -0.001}, "images": 50},
    },
}
REMOVED = object()


def changed(document: dict[str, Any], path: str, value: Any) -> str:
    """The document as JSON, with another value at `a.b.c`."""
    found = copy.deepcopy(document)
    *steps, last = path.split(".")
    inside = found
    for step in steps:
        inside = inside[step]
    if value is REMOVED:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(found)


CASES: list[tuple[dict[str, Any], str, Any, str]] = [
    # the format
    (DOCUMENT, "format_version", True, "format_version is true; expected an integer"),
    (DOCUMENT, "format_version", "1", "format_version is '1'; expected an integer"),
    (DOCUMENT, "format_version", 1.5, "format_version is 1.5; expected an integer"),
    (DOCUMENT, "format_version", None, "format_version is null; expected an integer"),
    (DOCUMENT, "format_version", 0, "format_version is 0; expected an integer >= 1"),
    (DOCUMENT, "format_version", -1, "format_version is -1; expected an integer >= 1"),
    (DOCUMENT, "format_version", 2, "has format 2; this detr-export reads 1, update it"),
    (DOCUMENT, "format_version", REMOVED, "lacks format_version"),
    # names
    (DOCUMENT, "task", "classification", "task is 'classification'; expected detection, segmentation or masks"),
    (DOCUMENT, "task", 5, "task is 5; expected text"),
    (DOCUMENT, "task", None, "task is null; expected text"),
    (DOCUMENT, "task", ["detection"], "task is a list of 1; expected text"),
    (DOCUMENT, "task", "", "task is ''; expected detection"),
    (DOCUMENT, "task", "x" * 10_000, "task is 'xxx.*; expected detection"),
    (DOCUMENT, "task", REMOVED, "lacks task"),
    (DOCUMENT, "precision", "bf16", "precision is 'bf16'; expected fp32, fp16 or int8"),
    (DOCUMENT, "precision", None, "precision is null; expected text"),
    (DOCUMENT, "precision", 32, "precision is 32; expected text"),
    (DOCUMENT, "input", "bytes", "input is 'bytes'; expected float, uint8 or image"),
    (DOCUMENT, "input", True, "input is true; expected text"),
    (DOCUMENT, "input", "image", "input is 'image' and end_to_end is null; expected both of one kind"),
    (END_TO_END, "input", "float", "input is 'float' and end_to_end is an object; expected both of one kind"),
    (END_TO_END, "end_to_end.color", "cmyk", "end_to_end.color is 'cmyk'; expected rgb or bgr"),
    (END_TO_END, "end_to_end.color", 1, "end_to_end.color is 1; expected text"),
    (END_TO_END, "end_to_end.resize", "nearest", "end_to_end.resize is 'nearest'; expected matmul or operator"),
    (END_TO_END, "end_to_end.resize", REMOVED, "end_to_end lacks resize"),
    (END_TO_END, "end_to_end.top_k", 0, "end_to_end.top_k is 0; expected an integer >= 1"),
    (END_TO_END, "end_to_end.top_k", -1, "end_to_end.top_k is -1; expected an integer >= 1"),
    (END_TO_END, "end_to_end.top_k", True, "end_to_end.top_k is true; expected an integer"),
    (END_TO_END, "end_to_end.top_k", 10**9, "end_to_end.top_k is 1000000000; expected at most 10000; .*--limit queries=N"),
    (END_TO_END, "end_to_end", [], "end_to_end is a list of 0; expected an object or null"),
    (DOCUMENT, "mask_head", "x", "mask_head is 'x'; expected a SHA-256 of 64 hexadecimal digits"),
    (DOCUMENT, "mask_head", "../../etc/passwd", "mask_head is '../../etc/passwd'; expected a SHA-256"),
    (DOCUMENT, "mask_head", 5, "mask_head is 5; expected text or null"),
    (DOCUMENT, "mask_head", "F" * 64, "mask_head is 'F+.*; expected a SHA-256"),
    # switches and numbers
    (DOCUMENT, "pixel_mask", 1, "pixel_mask is 1; expected true or false"),
    (DOCUMENT, "pixel_mask", "true", "pixel_mask is 'true'; expected true or false"),
    (DOCUMENT, "pixel_mask", None, "pixel_mask is null; expected true or false"),
    (DOCUMENT, "pixel_mask", REMOVED, "lacks pixel_mask"),
    (DOCUMENT, "opset", "18", "opset is '18'; expected an integer or null"),
    (DOCUMENT, "opset", 0, "opset is 0; expected an integer >= 1"),
    (DOCUMENT, "opset", 18.5, "opset is 18.5; expected an integer or null"),
    (DOCUMENT, "opset", True, "opset is true; expected an integer or null"),
    # classes
    (DOCUMENT, "id2label", [], "id2label is a list of 0; expected an object"),
    (DOCUMENT, "id2label", None, "id2label is null; expected an object"),
    (DOCUMENT, "id2label", "cat", "id2label is 'cat'; expected an object"),
    (DOCUMENT, "id2label", {"a": "b"}, "id2label has the id 'a'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"-1": "b"}, "id2label has the id '-1'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"01": "b"}, "id2label has the id '01'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"1.0": "b"}, "id2label has the id '1.0'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {" 1": "b"}, "id2label has the id ' 1'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"1_0": "b"}, "id2label has the id '1_0'; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"\u0663": "b"}, "id2label has the id .*; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {"": "b"}, "id2label has the id ''; expected an integer of 0 or more"),
    (DOCUMENT, "id2label", {str(2**70): "b"}, "id2label has the id '1180591620717411303424'; expected an integer"),
    (DOCUMENT, "id2label", {"9" * 5000: "b"}, r"id2label has the id '999.*\.\.\.; expected an integer"),
    (DOCUMENT, "id2label", {"100000000": "b"}, "an id of id2label is 100000000; expected at most 100000"),
    (DOCUMENT, "id2label", {"0": 1}, r"id2label\['0'\] is 1; expected text"),
    (DOCUMENT, "id2label", {"0": None}, r"id2label\['0'\] is null; expected text"),
    (DOCUMENT, "id2label", {"0": ["cat"]}, r"id2label\['0'\] is a list of 1; expected text"),
    (DOCUMENT, "id2label", {"0": "cat", "1": {}}, r"id2label\['1'\] is an object of 0; expected text"),
    (
        DOCUMENT,
        "id2label",
        {str(number): "" for number in range(100_001)},
        "the number of classes in id2label is 100001; expected at most 100000; if it is right, add --limit labels=N",
    ),
    (DOCUMENT, "label_ids_to_fuse", ["1"], r"label_ids_to_fuse\[0\] is '1'; expected an integer"),
    (DOCUMENT, "label_ids_to_fuse", [-1], r"label_ids_to_fuse\[0\] is -1; expected an integer >= 0"),
    (DOCUMENT, "label_ids_to_fuse", [1, 1.5], r"label_ids_to_fuse\[1\] is 1.5; expected an integer"),
    (DOCUMENT, "label_ids_to_fuse", [True], r"label_ids_to_fuse\[0\] is true; expected an integer"),
    (DOCUMENT, "label_ids_to_fuse", [[1]], r"label_ids_to_fuse\[0\] is a list of 1; expected an integer"),
    (DOCUMENT, "label_ids_to_fuse", {"1": 1}, "label_ids_to_fuse is an object of 1; expected a list"),
    (DOCUMENT, "label_ids_to_fuse", "12", "label_ids_to_fuse is '12'; expected a list"),
    (DOCUMENT, "label_ids_to_fuse", None, "label_ids_to_fuse is null; expected a list"),
    (DOCUMENT, "label_ids_to_fuse", [2**40], "an id of label_ids_to_fuse is 1099511627776; expected at most 100000"),
    # ranges
    (DOCUMENT, "ranges", [], "ranges is a list of 0; expected an object"),
    (DOCUMENT, "ranges", None, "ranges is null; expected an object"),
    (DOCUMENT, "ranges.batch", 1, r"ranges\['batch'\] is 1; expected a list"),
    (DOCUMENT, "ranges.batch", [], r"ranges\['batch'\] is a list of 0; expected a list of length 2"),
    (DOCUMENT, "ranges.batch", [1, 2, 3], r"ranges\['batch'\] is a list of 3; expected a list of length 2"),
    (DOCUMENT, "ranges.batch", [0, 1], r"ranges\['batch'\]\[0\] is 0; expected an integer >= 1"),
    (DOCUMENT, "ranges.batch", [-5, 1], r"ranges\['batch'\]\[0\] is -5; expected an integer >= 1"),
    (DOCUMENT, "ranges.batch", [None, 1], r"ranges\['batch'\]\[0\] is null; expected an integer"),
    (DOCUMENT, "ranges.batch", ["1", None], r"ranges\['batch'\]\[0\] is '1'; expected an integer"),
    (DOCUMENT, "ranges.batch", [1, "2"], r"ranges\['batch'\]\[1\] is '2'; expected an integer or null"),
    (DOCUMENT, "ranges.batch", [1.5, 2], r"ranges\['batch'\]\[0\] is 1.5; expected an integer"),
    (DOCUMENT, "ranges.batch", [True, 2], r"ranges\['batch'\]\[0\] is true; expected an integer"),
    (DOCUMENT, "ranges.batch", [5, 4], r"ranges\['batch'\] is 5 to 4; expected the smaller number first"),
    (DOCUMENT, "ranges.height", [1, 10**6], r"the end of ranges\['height'\] is 1000000; expected at most 65535; .*edge=N"),
    (DOCUMENT, "ranges.width", [10**6, None], r"the end of ranges\['width'\] is 1000000; expected at most 65535"),
    (DOCUMENT, "ranges", {"queries": [1, 10**6]}, r"the end of ranges\['queries'\] is 1000000; expected at most 10000"),
    # what the file came from
    (DOCUMENT, "source", [], "source is a list of 0; expected an object"),
    (DOCUMENT, "source.name", 5, r"source\['name'\] is 5; expected text"),
    (DOCUMENT, "source.name", ["a"], r"source\['name'\] is a list of 1; expected text"),
    (DOCUMENT, "source.sha256", None, r"source\['sha256'\] is null; expected text"),
    (DOCUMENT, "tools", 1, "tools is 1; expected an object"),
    (DOCUMENT, "tools.torch", 2.9, r"tools\['torch'\] is 2.9; expected text"),
    # comparisons
    (DOCUMENT, "parity", "good", "parity is 'good'; expected an object or null"),
    (DOCUMENT, "parity", [1], "parity is a list of 1; expected an object or null"),
    (DOCUMENT, "parity.max_abs_diff", 1, "parity.max_abs_diff is 1; expected an object"),
    (DOCUMENT, "parity.max_abs_diff", None, "parity.max_abs_diff is null; expected an object"),
    (DOCUMENT, "parity.max_abs_diff.logits", "1", r"parity.max_abs_diff\['logits'\] is '1'; expected a number"),
    (DOCUMENT, "parity.max_abs_diff.logits", -1, r"parity.max_abs_diff\['logits'\] is -1; expected a number >= 0"),
    (DOCUMENT, "parity.max_abs_diff.logits", [], r"parity.max_abs_diff\['logits'\] is a list of 0; expected a number"),
    (DOCUMENT, "parity.max_abs_diff.logits", 1e300, r"parity.max_abs_diff\['logits'\] is 1e\+300; expected a number <="),
    (DOCUMENT, "parity.ratio", [1], "parity.ratio is a list of 1; expected an object"),
    (DOCUMENT, "parity.ratio.logits", None, r"parity.ratio\['logits'\] is null; expected a number"),
    (DOCUMENT, "parity.end_to_end", 5, "parity.end_to_end is 5; expected an object or null"),
    (DOCUMENT, "parity.end_to_end", {"max_abs_diff": 1}, "parity.end_to_end.max_abs_diff is 1; expected an object"),
    (
        DOCUMENT,
        "parity.end_to_end",
        {"max_abs_diff": {"boxes": "a"}},
        r"parity.end_to_end.max_abs_diff\['boxes'\] is 'a'; expected a number",
    ),
    # int8
    (INT8, "quantization", "int8", "quantization is 'int8'; expected an object or null"),
    (INT8, "quantization.scope", "half", "quantization.scope is 'half'; expected backbone, encoder or all"),
    (INT8, "quantization.scope", 1, "quantization.scope is 1; expected text"),
    (INT8, "quantization.method", "max", "quantization.method is 'max'; expected minmax, entropy, percentile or mse"),
    (INT8, "quantization.images", 0, "quantization.images is 0; expected an integer >= 1"),
    (INT8, "quantization.images", "many", "quantization.images is 'many'; expected an integer"),
    (INT8, "quantization.float_precision", "int4", "quantization.float_precision is 'int4'; expected fp32 or fp16"),
    (INT8, "quantization.float_precision", REMOVED, "quantization lacks float_precision"),
    (INT8, "quantization.kept_float", [1], "quantization.kept_float is a list of 1; expected an object"),
    (INT8, "quantization.kept_float", {"a": 1}, r"quantization.kept_float\['a'\] is 1; expected text"),
    (INT8, "quantization.float_parity", 1, "quantization.float_parity is 1; expected an object or null"),
    (INT8, "quantization.accuracy", [], "quantization.accuracy is a list of 0; expected an object or null"),
    (INT8, "quantization.accuracy.scores", 1, "quantization.accuracy.scores is 1; expected an object"),
    (INT8, "quantization.accuracy.scores", {"AP": "x"}, r"quantization.accuracy.scores\['AP'\] is 'x'; expected a number"),
    (INT8, "quantization.accuracy.difference", {"AP": None}, r"accuracy.difference\['AP'\] is null; expected a number"),
    (INT8, "quantization.accuracy.images", "x", "quantization.accuracy.images is 'x'; expected an integer or null"),
    # the settings of images
    (DOCUMENT, "processor", "a", "processor is 'a'; expected an object"),
    (DOCUMENT, "processor", None, "processor is null; expected an object"),
    (DOCUMENT, "processor", REMOVED, "lacks processor"),
    (DOCUMENT, "processor.image_processor_type", "YolosImageProcessor", "image settings are not usable: .*Yolos"),
    (DOCUMENT, "processor.size", "big", "image settings are not usable: .*size"),
    (DOCUMENT, "processor.size", {"depth": 1}, "image settings are not usable: .*depth"),
    (DOCUMENT, "processor.resample", 99, "image settings are not usable: .*99"),
]


@pytest.mark.parametrize(
    ("document", "path", "value", "message"), CASES, ids=[f"{path}-{str(value)[:20]}" for _, path, value, _ in CASES]
)
def test_a_field_is_refused_when_the_file_is_opened(
    document: dict[str, Any], path: str, value: Any, message: str, tmp_path: Path
) -> None:
    text = changed(document, path, value)
    file = detr(tmp_path / "a.onnx", metadata=text)
    for opened in (Predictor.load, inspect_onnx):
        with pytest.raises(ArtifactError, match=rf"a\.onnx: .*{message}") as caught:
            opened(file)
        assert "\n" not in str(caught.value)


TEXTS = {
    "nothing": ("", "is not JSON"),
    "half": ('{"task": ', "is not JSON"),
    "list": ("[]", "it is a list of 0; expected an object"),
    "number": ("1", "it is 1; expected an object"),
    "null": ("null", "it is null; expected an object"),
    "text": ('"a"', "it is 'a'; expected an object"),
    "NaN": (changed(DOCUMENT, "ranges.batch", [1, math.nan]), "is not JSON"),
    "infinity in ranges": (changed(DOCUMENT, "ranges.batch", [1, math.inf]), "is not JSON"),
    "infinity in parity": (changed(DOCUMENT, "parity.max_abs_diff.logits", math.inf), "is not JSON"),
    "deep": ('{"format_version": 1, "task": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested too deeply"),
    "deeper than the limit": ('{"format_version": 1, "parity": ' + '{"a":' * 70 + "1" + "}" * 71, "nested too deeply"),
    "a long integer": ('{"format_version": ' + "1" * 5000 + "}", "is not JSON: Integer value out of range"),
    "an integer of 70 bits": ('{"format_version": 1, "opset": 1180591620717411303424}', "integer of 71 bits"),
    "1e400": ('{"format_version": 1, "opset": 1e400}', "is not JSON"),
    "half a pair": ('{"format_version": 1, "task": "\\ud800"}', "is not JSON"),
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_is_refused_when_the_file_is_opened(name: str, tmp_path: Path) -> None:
    text, message = TEXTS[name]
    file = detr(tmp_path / "a.onnx", metadata=text)
    for opened in (Predictor.load, inspect_onnx, open_session):
        with pytest.raises(ArtifactError, match=rf"a\.onnx: the file's metadata.*{message}") as caught:
            opened(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [DOCUMENT, END_TO_END, INT8], ids=["plain", "end to end", "int8"])
def test_the_documents_that_were_changed_are_read(document: dict[str, Any]) -> None:
    """Or the cases above would show nothing."""
    metadata = Metadata.from_json(json.dumps(document))
    assert Metadata.from_json(metadata.to_json()) == metadata
    assert json.loads(metadata.to_json()) == document


def test_the_file_of_the_document_opens(tmp_path: Path) -> None:
    with Predictor.load(detr(tmp_path / "a.onnx")) as predictor:
        assert predictor.id2label == {0: "cat", 1: "dog"}
    assert inspect_onnx(tmp_path / "a.onnx").summary()


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**70, 10**300, 0.5, 1e308, -0.0, 1e-320),
    *(
        "",
        "0",
        "1",
        "true",
        "\x00",
        "a\nb",
        "\x1b[31m",
        "x" * 5000,
        "../..",
        "\u202e",
        "9" * 5000,
        "-1",
        "NaN",
        "{}",
        "cuda",
    ),
    *([], {}, [[]], [{}], {"": ""}, {"a": None}, [None], [1, 2], {"0": {}}, {"height": -1, "width": 0}, {"x": [1, 0]}),
    {"shortest_edge": 10**9, "longest_edge": 10**9},
]


def places(value: Any, path: str = "") -> list[str]:
    """The paths of all fields, also those inside of others."""
    inside = [f"{path}.{name}".lstrip(".") for name in value] if isinstance(value, dict) else []
    return inside + [deeper for name in inside for deeper in places(value[name.rpartition(".")[2]], name)]


@pytest.mark.parametrize("name", ["plain", "end to end", "int8"])
def test_no_value_of_any_field_gets_past_our_errors(name: str) -> None:
    document = {"plain": DOCUMENT, "end to end": END_TO_END, "int8": INT8}[name]
    tried = 0
    for path in places(document):
        if path.startswith("processor."):
            continue  # the processor's own class is tested with its settings
        for value in HOSTILE:
            tried += 1
            error = problem_of(changed(document, path, value))
            assert error is None or ("\n" not in error and "metadata" in error), (path, value)
    assert tried > 1000


def problem_of(text: str) -> str | None:
    """Why a document is refused; None for one that is read, and then comes back as it is."""
    try:
        read = Metadata.from_json(text)
    except DetrError as error:
        return str(error)
    assert Metadata.from_json(read.to_json()) == read
    return None
