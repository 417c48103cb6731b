"""The script of docs/migration.md, block after block, with transformers' classes and with ours: the same numbers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import DetrImageProcessor
from detr_export.seeding import seed_weights
from tests import models

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
STEPS = 20  # that the script takes; the table has one more, which differs
ATOL, ATOL_HALF = 2e-4, 1e-2
# What two libraries cannot have in common, though it compares: a classifier that each draws for itself.
DRAWN = {"adapted_outputs"}


def test_the_table_and_the_script_have_the_same_steps() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (works|differs).* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, STEPS + 2))
    assert [verdict for _, verdict in rows] == ["works"] * STEPS + ["differs"]
    assert [int(number) for block in BLOCKS for number in re.findall(r"^# (\d+): ", block, re.MULTILINE)] == [
        *range(1, STEPS + 1)
    ]


def compare(given: Any, expected: Any, name: str) -> int:
    """Compares what both libraries made; returns how many values that were, 0 for a model or a function."""
    if isinstance(expected, (torch.Tensor, np.ndarray)):
        assert type(given) is type(expected), name
        assert given.dtype == expected.dtype, name
        allowed = ATOL_HALF if expected.dtype == torch.float16 else ATOL
        torch.testing.assert_close(given, expected, atol=allowed, rtol=allowed, msg=lambda text: f"{name}: {text}")
        return 1
    if isinstance(expected, Image.Image):
        assert given.size == expected.size, name
        assert np.mean(np.asarray(given) != np.asarray(expected)) < 1e-3, name
        return 1
    if isinstance(expected, Mapping):
        assert set(given.keys()) == set(expected.keys()), name
        return sum(compare(given[key], expected[key], f"{name}[{key!r}]") for key in expected)
    if isinstance(expected, str):
        assert given == expected, name
        return 1
    if isinstance(expected, (bool, int, float, torch.dtype, torch.device)):
        assert given == pytest.approx(expected, abs=ATOL, rel=ATOL) if isinstance(expected, float) else given == expected, (
            name
        )
        return 1
    if isinstance(expected, Sequence):
        assert len(given) == len(expected), name
        return sum(compare(one, other, f"{name}[{i}]") for i, (one, other) in enumerate(zip(given, expected, strict=True)))
    return 0


@pytest.fixture
def published(hub_cache: Path, tmp_path: Path, segmenter: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, and a cache of the hub with small checkpoints under the names of the published ones."""
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(hub_cache))
    config = models.config(encoder_attention_heads=8, decoder_attention_heads=8, dropout=0.0)
    for repository, kind in (("detr-resnet-50", DetrForObjectDetection), ("detr-resnet-50-panoptic", DetrForSegmentation)):
        model = kind(config)
        seed_weights(model, 0)
        if isinstance(model, DetrForSegmentation):  # or the masks cover everything
            model.load_state_dict(load_checkpoint(segmenter).state_dict)
        folder = model.save_pretrained(tmp_path / repository, DetrImageProcessor(size=models.SIZE))
        models.publish(hub_cache, f"facebook/{repository}", folder)
    random = np.random.default_rng(0)
    work = tmp_path / "work"
    (work / "panoptic").mkdir(parents=True)
    for name, size in {"a.jpg": (96, 64), "b.jpg": (64, 80)}.items():
        coarse = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(work / name)
    ids = np.zeros((64, 96, 3), dtype=np.uint8)
    ids[:, :50, 0], ids[:, 50:90, 0] = 1, 2
    Image.fromarray(ids).save(work / "panoptic" / "a.png")
    return work


def test_the_script_gives_the_same_numbers_with_both(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of what is asked of it here
    folders = {
        library: shutil.copytree(published, published.parent / library) for library in ("transformers", "detr_export")
    }
    spaces: dict[str, dict[str, Any]] = {library: {"__name__": "__main__"} for library in folders}
    for number, block in enumerate(BLOCKS):
        known = {library: dict(space) for library, space in spaces.items()}
        for library, folder in folders.items():
            monkeypatch.chdir(folder)
            torch.manual_seed(0)
            program = block.replace("from detr_export import", f"from {library} import")
            assert program != block or library == "detr_export" or "from detr_export" not in block
            exec(compile(program, f"block {number} with {library}", "exec"), spaces[library])
        new = {
            library: {name: value for name, value in space.items() if known[library].get(name) is not value}
            for library, space in spaces.items()
        }
        assert set(new["detr_export"]) == set(new["transformers"])
        compared = {
            name: compare(new["detr_export"][name], value, name)
            for name, value in new["transformers"].items()
            if name not in DRAWN and name != "__builtins__"
        }
        assert sum(compared.values()) >= 10, f"block {number} leaves next to nothing to compare: {compared}"
    transformers.logging.set_verbosity(before)
    assert type(spaces["detr_export"]["model"]) is DetrForObjectDetection
    assert type(spaces["transformers"]["model"]) is transformers.DetrForObjectDetection
    # Each kind of result has something in it.
    ours = spaces["detr_export"]
    for name in ("lines", "found_in_each", "panoptic", "areas", "instances", "runs", "losses", "detected", "segmented"):
        assert len(ours[name]) > 0, name
    assert all(len(found["scores"]) > 1 for found in ours["found_in_each"])
    assert all(len(one) > 0 for one in (*ours["detected"], *ours["segmented"]))
    assert all(one["segments_info"] for one in (*ours["panoptic"], *ours["instances"]))


def test_the_comparison_sees_a_difference() -> None:
    """Or the test above would pass on anything."""
    right = {"a": [torch.ones(2), {"b": (1.0, "text")}], "c": np.zeros(3)}
    assert compare(right, right, "") == 4
    for wrong in (
        {**right, "c": np.ones(3)},
        {**right, "a": [torch.ones(2) * 1.01, right["a"][1]]},
        {**right, "a": [torch.ones(2), {"b": (1.1, "text")}]},
        {**right, "a": [torch.ones(2), {"b": (1.0, "other")}]},
        {**right, "c": torch.zeros(3)},
        {"a": right["a"]},
    ):
        with pytest.raises(AssertionError):
            compare(wrong, right, "")
