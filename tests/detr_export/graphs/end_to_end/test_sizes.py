"""The size rules of the graph against the processor's, on many thousand sizes each."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.graphs.end_to_end.building import Nodes
from detr_export.graphs.end_to_end.sizes import LARGEST_SIDE, resized
from detr_export.runtimes import ArtifactError, ImageError, limits
from detr_export.runtimes.backends.openvino.session import shared_core
from detr_export.runtimes.limits import Limits
from detr_export.runtimes.processing.sizes import SizeDict, as_size, output_size
from tests.detr_export.graphs.end_to_end.running import model_of, run

_EACH = 3000


RULES: list[SizeDict] = [
    {"shortest_edge": 800, "longest_edge": 1333},
    {"shortest_edge": 144, "longest_edge": 192},
    {"shortest_edge": 512, "longest_edge": 1024},  # powers of two have finer units below them than above
    {"shortest_edge": 800, "longest_edge": 800},
    {"shortest_edge": 1, "longest_edge": 2},
    {"shortest_edge": 320, "longest_edge": None},
    {"longest_edge": 1000},
    {"longest_edge": 1024},
    {"max_height": 600, "max_width": 1000},
    {"max_height": 512, "max_width": 1024},
    {"height": 300, "width": 400},
]


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths: thin images, photographs, and all that is allowed."""
    draw = np.random.default_rng(0).integers
    heights = [draw(1, 20, _EACH), draw(1, 2000, _EACH), draw(1, LARGEST_SIDE + 1, _EACH), np.full(300, 1)]
    widths = [draw(1, 4000, _EACH), draw(1, 2000, _EACH), draw(1, LARGEST_SIDE + 1, _EACH), np.arange(100, 400)]
    return np.concatenate(heights + widths), np.concatenate(widths + heights)


def _resized(size: SizeDict, heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes = Nodes("sizes")
    height, width = resized(nodes, nodes.value("height"), nodes.value("width"), size)
    found = run(nodes, {"new_height": height, "new_width": width}, {"height": heights[:, None], "width": widths[:, None]})
    return tuple(np.broadcast_to(array, (len(heights), 1))[:, 0] for array in found.values())  # type: ignore[return-value]


@pytest.mark.parametrize("size", RULES, ids=str)
def test_every_rule(size: SizeDict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", Limits(edge=2**40, batch_pixels=2**62))  # sizes alone take no memory
    heights, widths = _images()
    found = np.stack(_resized(as_size(size), heights, widths), axis=1)
    wrong = 0
    for height, width, new in zip(heights.tolist(), widths.tolist(), found.tolist(), strict=True):
        try:
            expected = output_size(height, width, size)
        except ImageError:  # too thin
            assert 1 in new
            continue
        wrong += expected != tuple(new)
    assert wrong == 0


def test_the_sizes_include_those_that_float64_rounds_down() -> None:
    heights, widths = _images()
    rounded_down = sum(
        max(output_size(height, width, {"shortest_edge": 800, "longest_edge": 1333})) == 1332
        for height, width in zip(heights.tolist(), widths.tolist(), strict=True)
        if min(height, width) * 1333 > max(height, width)
    )
    assert rounded_down > 200
    assert [side.item() for side in _resized({"shortest_edge": 800, "longest_edge": 1333}, *np.array([[1], [298]]))] == [
        4,
        1332,
    ]


@pytest.mark.parametrize("size", [{"longest_edge": None}, {"shortest_edge": 800}, {"height": 1, "width": LARGEST_SIDE + 1}])
def test_refused(size: SizeDict) -> None:
    nodes = Nodes("sizes")
    with pytest.raises(ArtifactError, match="size is"):
        resized(nodes, nodes.value("height"), nodes.value("width"), size)


@pytest.mark.parametrize("size", RULES[:-1], ids=str)
def test_32_bits_are_enough(size: SizeDict) -> None:
    """OpenVINO computes int64 in int32."""
    heights, widths = (np.concatenate([array[::37], np.array([LARGEST_SIDE, 1, LARGEST_SIDE])]) for array in _images())
    heights[-1] = LARGEST_SIDE
    expected = _resized(as_size(size), heights, widths)
    nodes = Nodes("sizes")
    height, width = resized(nodes, nodes.value("height"), nodes.value("width"), as_size(size))
    feeds = {"height": heights[:, None], "width": widths[:, None]}
    model = model_of(nodes, {"new_height": height, "new_width": width}, feeds)
    core = shared_core()
    found = core.compile_model(core.read_model(model.SerializeToString()), "CPU")(feeds)
    thin = np.minimum(*expected) == 1  # what the processor refuses has no right size
    for output, right in zip(found.to_tuple(), expected, strict=True):
        assert np.array_equal(np.broadcast_to(output, (len(heights), 1))[~thin, 0], right[~thin])
