"""End-to-end files through the real compiler: what they cost in kernels, and whether it computes sizes as the processor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from detr_export.graphs.end_to_end.building import Nodes
from detr_export.graphs.end_to_end.sizes import resized
from detr_export.runtimes.processing.sizes import as_size, output_size
from tests.rtx.compiler import ROOT, Compiler, require_installed
from tests.rtx.forms import ATTENTIONS, MakeFile, check

PROFILES = ("1x32x32:1x1080x1920:2x2160x3840",)
PLAIN_PROFILES = ("1x32x32:1x800x1333:2x1333x1333",)
MOST = 20  # kernels that the processor and the results may add


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_it_costs(precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    plain = rtx_compiler.compile_form(
        make_file("no_timm", f"no_mask-{precision}", precision=precision, pixel_mask=False), PLAIN_PROFILES
    )
    file = make_file("no_timm", f"end_to_end-{precision}", precision=precision, end_to_end=True)
    whole = rtx_compiler.compile_form(file, PROFILES)
    check(whole, file, profiles=1, fused=ATTENTIONS if precision == "fp16" else 0)
    assert whole.sidecar.precision == precision
    assert whole.sidecar.metadata.end_to_end is not None
    added = whole.report["kernels"] - plain.report["kernels"]
    print(f"{precision}: {plain.report['kernels']} kernels, {added} more end to end")
    assert 5 < added <= MOST
    # A part whose sizes have no limit gets its memory during the run, and no limit is a defect of the graph.
    assert "allocate" not in whole.report["by_kind"]
    assert whole.attestation["products"]["fp32"] >= 2  # those of the resize


PARSE = """
import json, sys
import onnx
from detr_export.runtimes.backends.tensorrt.api import tensorrt_rtx
library = tensorrt_rtx()
trt = library.trt
model = onnx.load(sys.argv[1])
found = []
for size in json.loads(sys.stdin.read()):
    for dimension, value in zip(model.graph.input[0].type.tensor_type.shape.dim, size, strict=True):
        dimension.dim_value = value
    builder = trt.Builder(library.logger)
    network = library.generation.create_network(builder)
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    found.append(tuple(network.get_output(0).shape))
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 800, "longest_edge": 1333},
        {"shortest_edge": 512, "longest_edge": 1024},
        {"longest_edge": 1000},
        {"max_height": 600, "max_width": 1000},
    ],
    ids=str,
)
def test_it_computes_sizes_as_the_processor_does(size: dict[str, int], tmp_path: Path) -> None:
    """Where an image's size is fixed, the compiler evaluates the rule while it reads the graph."""
    require_installed()
    # A graph from an image to a tensor of the size that the image is resized to
    nodes = Nodes("sizes")
    image = nodes.cast(nodes.value("image"), np.float32)
    height, width = (nodes.add("Shape", image, start=axis, end=axis + 1) for axis in (0, 1))
    new_height, new_width = resized(nodes, height, width, as_size(size))
    shape = nodes.add("Concat", new_height, new_width, axis=0)
    nodes.name_output(nodes.add("Expand", np.zeros((1, 1), np.float32), shape), "y")
    described = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes.nodes,
        "sizes",
        [described("image", onnx.TensorProto.UINT8, ["h", "w"])],
        [described("y", onnx.TensorProto.FLOAT, ["a", "b"])],
        nodes.initializers,
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a")
    # Thin images, which float64 rounds in ways of its own, and others
    draw = np.random.default_rng(0).integers
    images = [(1, 298), (298, 1), (1080, 1920), (3840, 2160), *zip(draw(8, 40, 60), draw(40, 4000, 60), strict=True)]
    sizes = [(int(height), int(width)) for height, width in images]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(tmp_path / "a")],
        cwd=ROOT, input=json.dumps(sizes), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [tuple(item) for item in json.loads(done.stdout)]
    expected = [output_size(height, width, size) for height, width in sizes]
    assert found == expected
