"""From `image` to `pixel_values`: the antialiased resize and the scaling of the processor, as nodes of a graph.

By default a resize is two matrix products. The weights are Pillow's triangle filter: its support is the scale where the
image shrinks, and one pixel where it grows. The width comes first, and each pass rounds to whole levels, as in Pillow. The
weights are multiples of 2^-16, so every sum of products is exact in float32, in whatever order it is added up. So runtimes
whose division is that of IEEE 754 give the same levels.

Against Pillow, whose weights have 22 bits, a few values in a thousand are one level off: they lie half-way between two
levels. Two levels are possible, where both passes meet that. From version 12 on, Pillow begins with the height where a
narrow image shrinks; there up to a quarter of the values are one level off.

ONNX's own Resize is as close as ONNX Runtime computes it, but only on uint8 and with `exclude_outside`.
"""

from __future__ import annotations

import numpy as np

from detr_export.graphs.end_to_end.building import Nodes, Value
from detr_export.graphs.end_to_end.sizes import resized
from detr_export.runtimes.metadata import BGR, MATMUL, EndToEnd
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.sizes import as_size

_UNITS = 65536  # of a weight of 1; 255 times it, and a half more, is below 2^24, where float32 ends to be exact


def add_pixels(nodes: Nodes, image: Value, processor: DetrImageProcessor, options: EndToEnd) -> tuple[Value, Value, Value]:
    """Adds the processor.

    Args:
        nodes: the graph that grows.
        image: uint8 (B, H, W, 3).
        processor: its settings; they are those that `composing.end_to_end_of` lets through.
        options: the order of the channels, and the way to resize.

    Returns:
        `pixel_values` float32 (B, 3, h, w), and the image's height and width, int64 (1,).
    """
    # TensorRT takes a uint8 input in a Cast and nowhere else, so the sizes are read from the copy.
    source = nodes.cast(image, np.float32) if options.resize == MATMUL else image
    height = nodes.add("Shape", source, start=1, end=2)
    width = nodes.add("Shape", source, start=2, end=3)
    pixels = nodes.add("Transpose", source, perm=(0, 3, 1, 2))
    if processor.do_resize:
        new_height, new_width = resized(nodes, height, width, as_size(processor.size))
        if options.resize == MATMUL:
            pixels = _rounded(nodes, nodes.add("MatMul", pixels, _weights(nodes, width, new_width, old_axis=0)))
            pixels = _rounded(nodes, nodes.add("MatMul", _weights(nodes, height, new_height, old_axis=1), pixels))
        else:
            sizes = nodes.add("Concat", nodes.add("Shape", pixels, start=0, end=2), new_height, new_width, axis=0)
            pixels = nodes.add("Resize", pixels, None, None, sizes, mode="linear", antialias=1, exclude_outside=1)
    if options.resize != MATMUL:
        pixels = nodes.cast(pixels, np.float32)
    if options.color == BGR:
        pixels = nodes.add("Gather", pixels, [2, 1, 0], axis=1)
    scale, offset = _scaling(processor)
    return pixels * scale + offset, height, width


def _weights(nodes: Nodes, size: Value, new_size: Value, old_axis: int) -> Value:
    """The weight of each old pixel in each new one: float32 (new, old), or (old, new) where `old_axis` is 0.

    Old centres lie at (2i + 1) / 2, and new ones at (2j + 1) / 2 * size / new_size. Both are multiplied by 2 * new_size, so
    that integers are subtracted. Heights in the triangle and their sum are integers below 2^24; only a quotient is rounded.
    """
    old = nodes.cast((_range(nodes, size) * 2 + 1) * new_size, np.int32)
    new = nodes.cast((_range(nodes, new_size) * 2 + 1) * size, np.int32)
    old = nodes.add("Unsqueeze", old, [1 - old_axis])
    new = nodes.add("Unsqueeze", new, [old_axis])
    distance = nodes.cast(nodes.add("Abs", old - new), np.float32)
    support = nodes.cast(nodes.add("Max", size, new_size) * 2, np.float32)
    heights = nodes.add("Relu", support - distance)
    unit = nodes.add("ReduceSum", heights, [old_axis], keepdims=1) * (1 / _UNITS)
    return nodes.add("Floor", heights / unit + 0.5) * (1 / _UNITS)


def _range(nodes: Nodes, size: Value) -> Value:
    """0 to size - 1, int64."""
    return nodes.add("Range", 0, nodes.add("Squeeze", size, [0]), 1)


def _rounded(nodes: Nodes, sums: Value) -> Value:
    """Whole levels."""
    return nodes.add("Floor", sums + 0.5)


def _scaling(processor: DetrImageProcessor) -> tuple[np.ndarray, np.ndarray]:
    """What pixels are multiplied by, and what is added then: float32 (3, 1, 1), computed in float64."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, deviation = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, deviation = (np.broadcast_to(np.asarray(values, np.float64), 3) for values in (mean, deviation))
    scale, offset = factor / deviation, -mean / deviation
    return scale.astype(np.float32)[:, None, None], offset.astype(np.float32)[:, None, None]
