"""A model card, which the hub shows of a repository: what an exported file is, where it came from, what was measured.

The front matter has the fields that the hub reads (https://huggingface.co/docs/hub/model-cards). A license is not among
them: nothing in a checkpoint says which one holds.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.checkpoints.reading import PACKAGED
from detr_export.runtimes.cpu import cpu_name, instruction_sets
from detr_export.runtimes.files import require_writable, sha256_of_file, user_path, write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.images import load_image

_MEASURED = (640, 480)  # width and height, pixels
_WARM_UPS, _RUNS = 2, 5
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_TASKS = {"detection": "object-detection", "segmentation": "image-segmentation"}  # the hub's names


@dataclass(frozen=True)
class CardFile:
    """An exported file."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Latency:
    """How long one image took, from its pixels to detections."""

    image: str  # its width and height, such as 640x480
    median_ms: float
    fastest_ms: float
    runs: int
    machine: str  # CPU, its instruction sets, and how many cores


def card_file(output: Path) -> Path:
    """Where the card of an exported file lies."""
    return output.with_suffix(".md")


def picture_file(output: Path) -> Path:
    """Where the picture of a card lies."""
    return output.with_suffix(".png")


def require_card_place(output: Path, overwrite: bool, picture: Path | None) -> None:
    """Refuses, before any work is done, a card that cannot be written; arguments as in `write_card`.

    Raises:
        OutputError: its place is taken while `overwrite` is false, or is not writable.
        ImageError: the picture cannot be read.
    """
    require_writable(card_file(output), overwrite)
    if picture is not None:
        require_writable(picture_file(output), overwrite)
        load_image(picture)


def write_card(file: Path, metadata: Metadata, scores: str | None = None, picture: Path | None = None) -> None:
    """Writes the card of an exported file beside it, with a picture if there is one.

    Args:
        file: the exported file; all files beside it belong to it.
        metadata: its own.
        scores: one line on its accuracy, for people; None if it was not scored.
        picture: an image, on a copy of which the file's detections are drawn.

    Raises:
        ImageError: the picture cannot be read.
        OutputError: a file cannot be written.
    """
    parts = sorted(file.parent.iterdir(), key=lambda part: (part != file, part.name))
    files = [CardFile(part.name, part.stat().st_size, sha256_of_file(part)) for part in parts]
    if picture is not None:
        with Predictor.load(file, spinning=False) as predictor:
            drawn = predictor.detect(picture).draw(picture)
        drawn.save(picture_file(file))
    name = None if picture is None else picture_file(file).name
    text = model_card(files, metadata, base_model_of(metadata), scores, name, measure_latency(file))
    write_atomically(card_file(file), text.encode("utf-8"))


def measure_latency(file: Path) -> Latency:
    """Runs a file on the CPU of this machine, on one image of noise."""
    width, height = _MEASURED
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    times = []
    with Predictor.load(file, spinning=False) as predictor:
        for _ in range(_WARM_UPS + _RUNS):
            begin = time.perf_counter()
            predictor.detect(pixels)
            times.append((time.perf_counter() - begin) * 1000)
    counted = times[_WARM_UPS:]
    sets = ", ".join(instruction_sets()) or "instruction sets unknown"
    machine = f"{cpu_name()} ({sets}), {os.cpu_count()} cores"
    return Latency(f"{width}x{height}", statistics.median(counted), min(counted), len(counted), machine)


def base_model_of(metadata: Metadata) -> str | None:
    """The hub's name of the checkpoint that a file came from, None if it lay on this machine or in the package."""
    name = metadata.source.get("name", "")
    on_hub = _HUB_ID.fullmatch(name) is not None and name not in PACKAGED and not os.path.exists(user_path(name))
    return name if on_hub else None


def model_card(
    files: list[CardFile],
    metadata: Metadata,
    base_model: str | None,
    scores: str | None,
    picture: str | None,
    latency: Latency | None = None,
) -> str:
    """The text of a card, in Markdown behind YAML.

    Args:
        files: of the export; the first is the one that is opened.
        metadata: of that file.
        base_model: the hub's name of the checkpoint, if it has one.
        scores: as in `write_card`.
        picture: the name of a picture of detections, if there is one.
        latency: how fast the file ran; None if it was not measured.
    """
    opened = files[0].name
    sections = [
        _front_matter(metadata, base_model),
        f"# {Path(opened).stem}",
        _introduction(metadata, base_model),
        "" if picture is None else f"![What the file finds in a picture]({picture})",
        "## How to run it",
        _how_to_run(opened, metadata),
        "## Files",
        _files(files, metadata),
        "## What it takes and gives",
        _facts(metadata),
        "## Agreement with the checkpoint",
        _parity(metadata, scores),
        "" if latency is None else "## Speed",
        "" if latency is None else _speed(latency),
        "## Classes",
        ", ".join(dict.fromkeys(metadata.id2label.values())) + ".",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(metadata: Metadata, base_model: str | None) -> str:
    values: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": _TASKS[metadata.task],
        **({} if base_model is None else {"base_model": base_model}),
        "tags": ["onnx", "detr", "detr-export", metadata.precision],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]  # JSON is YAML, whatever a name holds
    return "\n".join(["---", *lines, "---"])


def _source(metadata: Metadata, base_model: str | None) -> str:
    if base_model is not None:
        return f"[{base_model}](https://huggingface.co/{base_model})"
    return f"`{Path(metadata.source.get('name', 'an unnamed checkpoint')).name}`"  # the rest of a path is nobody's business


def _introduction(metadata: Metadata, base_model: str | None) -> str:
    source, count = _source(metadata, base_model), len(set(metadata.id2label.values()))
    what = "boxes and scores" if metadata.task == "detection" else "boxes, scores, masks and panoptic maps"
    lines = [
        f"A DETR that finds objects of {count} {'class' if count == 1 else 'classes'} in pictures and gives {what}.",
        f"It was exported from {source} by detr-export, which adds no data and no training. So it is meant for the",
        "pictures that its source is meant for. The source says on what it was trained, where it fails, and its license.",
    ]
    return "\n".join(lines)


def _how_to_run(opened: str, metadata: Metadata) -> str:
    call = "detect" if metadata.task == "detection" else "segment_panoptic"
    task = "" if metadata.task == "detection" else " --task panoptic"
    return (
        "```python\nfrom detr_export import Predictor\n\n"
        f'with Predictor.load("{opened}") as predictor:\n'
        f'    print(predictor.{call}("picture.jpg"))\n```\n\n'
        f"```console\n$ detr-export predict {opened} picture.jpg{task} -o results\n```"
    )


def _files(files: list[CardFile], metadata: Metadata) -> str:
    rows = [f"| `{file.name}` | {file.size_bytes / 1e6:.1f} MB | `{file.sha256}` |" for file in files]
    rows.append(f"| the weights of the source | | `{metadata.source.get('sha256', 'unknown')}` |")
    return "\n".join(["| file | size | SHA-256 |", "|---|---|---|", *rows])


def _facts(metadata: Metadata) -> str:
    facts = {
        "task": metadata.task,
        "precision": metadata.precision,
        "opset": metadata.opset,
        "images": size_rule(metadata),
        "padded batches": "yes" if metadata.pixel_mask else "no, images of one size",
    }
    if metadata.quantization is not None:
        about = metadata.quantization
        facts["int8"] = f"the {about.scope}, calibrated on {about.images} pictures by {about.method}"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def size_rule(metadata: Metadata) -> str:
    """How large images are when the model gets them, in words."""
    if metadata.end_to_end is not None:
        return "of any size, as bytes; the file resizes them itself"
    processor = metadata.processor
    size = processor.get("size") or {}
    if not processor.get("do_resize", True):
        return "as they are"
    if "height" in size:
        return f"{size['height']} pixels high and {size['width']} wide, whatever their shape was"
    if "max_height" in size:
        return f"as large as fits into {size['max_height']} pixels of height and {size['max_width']} of width"
    if "shortest_edge" in size:
        longest = size.get("longest_edge")
        limit = "" if longest is None else f", or less where the longer one would have more than {longest}"
        return f"their shorter side has {size['shortest_edge']} pixels{limit}"
    return f"their longer side has {size.get('longest_edge')} pixels"


def _parity(metadata: Metadata, scores: str | None) -> str:
    quantized = metadata.quantization is not None
    parity = metadata.quantization.float_parity if metadata.quantization is not None else metadata.parity
    parts = []
    if parity is None:
        parts.append("Not compared.")
    else:
        of = "The float graph before int8 was compared" if quantized else "The file was compared"
        parts.append(f"{of} with the checkpoint in float64, over {parity['cases']} batches of many sizes:")
        parts.append(_differences(parity))
    if scores is not None:
        parts.append(f"Accuracy {scores}.")
    elif quantized:
        parts.append("The accuracy of the int8 file was not measured.")
    return "\n\n".join(parts)


def _speed(latency: Latency) -> str:
    median, fastest = (f"{value:.0f} ms" for value in (latency.median_ms, latency.fastest_ms))
    lines = [
        f"One image of {latency.image} pixels took {median} from pixels to boxes (median of {latency.runs} runs;",
        f"the fastest {fastest}) in ONNX Runtime on {latency.machine}, right after the export.",
        "`detr-bench` compares runtimes and machines fairly.",
    ]
    return "\n".join(lines)


def _differences(parity: Mapping[str, Any]) -> str:
    rows = ["| output | largest difference | float arithmetic alone | allowed |", "|---|---|---|---|"]
    for name, difference in parity["max_abs_diff"].items():
        floor = parity["noise_floor"].get(name)
        known = "not measured" if floor is None else f"{floor:.1e}"
        rows.append(f"| `{name}` | {difference:.1e} | {known} | {parity['tolerance'][name]:.1e} |")
    return "\n".join(rows)
