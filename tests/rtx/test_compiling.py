"""Tiny models through the real compiler: that it takes them, fuses their attention, and computes in their precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.modules import module_of
from detr_export.runtimes.errors import BackendError
from tests.rtx.compiler import ROOT, SMALL, Compiler, require_installed
from tests.test_cli import fails, run


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path, segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The exported models, by task and precision."""
    folder = tmp_path_factory.mktemp("forms")
    found = {}
    for task, checkpoint in (("detection", tiny_checkpoint), ("segmentation", segmenter)):
        for precision in ("fp32", "fp16"):
            options = ExportOptions(precision=precision, verify=False)
            file = folder / f"{task}-{precision}.onnx"
            found[task, precision] = export_onnx(load_checkpoint(checkpoint), file, options).path
    return found


REAL = "pass"  # a process of its own: the compiler may crash
Files = dict[tuple[str, str], Path]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_compiles_in_the_graphs_precision(task: str, precision: str, files: Files, rtx_compiler: Compiler) -> None:
    made = rtx_compiler.compile_form(files[task, precision])
    assert made.sidecar.precision == precision
    assert set(made.sidecar.layers) <= {"fp32", "fp16", "fp16-in-fp32"}
    assert set(made.attestation["convolutions"]) == {precision}
    # The rest hides in kernels that are no products: a projection of zeros, and attention of heads of 4.
    assert made.attestation["attested"] > 0.9 * made.attestation["total"]
    assert made.report["kernels"] > 20
    assert made.report["plan_bytes"] > 10_000


def test_all_targets_fit_into_one_engine(files: Files, rtx_compiler: Compiler) -> None:
    one = rtx_compiler.compile_form(files["detection", "fp16"])
    all_of_them = rtx_compiler.compile_form(files["detection", "fp16"], targets=())
    assert one.sidecar.targets == ((8, 9),)
    assert all_of_them.sidecar.targets == ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
    assert one.report["kernels"] == all_of_them.report["kernels"]
    assert all_of_them.report["plan_bytes"] < 1.1 * one.report["plan_bytes"]  # the GPU's driver compiles the rest


def test_several_profiles(files: Files, rtx_compiler: Compiler) -> None:
    profiles = (*SMALL, "1x32x96:1x96x128:1x96x160", "4x96x96")
    made = rtx_compiler.compile_form(files["detection", "fp16"], profiles)
    assert made.attestation["profiles"] == 3
    assert made.sidecar.profiles == ("1x64x64:1x96x128:2x160x160", "1x32x96:1x96x128:1x96x160", "4x96x96:4x96x96:4x96x96")


def test_what_the_builder_refuses_names_its_module(files: Files, rtx_compiler: Compiler) -> None:
    """Turing has no products in fp32."""
    file = files["detection", "fp32"]
    with pytest.raises(BackendError, match=r"Cannot compile operation '.*' for Turing") as error:
        rtx_compiler.compile_form(file, targets=("7.5",))
    named = next(node for node in onnx.load(str(file)).graph.node if node.name and f"'{node.name}'" in str(error.value))
    assert str(error.value).endswith(f"({named.op_type} {named.name}, traced in {module_of(named)})")


PARSE = """
import sys
from pathlib import Path
import onnx
from detr_export.engines.builder import BuildOrder, build_plan
from detr_export.engines.options import BuildSettings
from detr_export.runtimes.backends.tensorrt.api import tensorrt_rtx
from detr_export.runtimes.errors import ArtifactError
file = Path(sys.argv[1])
order = BuildOrder(tensorrt_rtx(), file, onnx.load(str(file)), (), "fp32", BuildSettings(), ((8, 9),), None)
try:
    build_plan(order)
except ArtifactError as error:
    print(error)
"""


def test_what_the_parser_refuses_names_its_node(tmp_path: Path) -> None:
    require_installed()
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT32, name="to_int32"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], name="dequantise"),
    ]
    nodes[1].metadata_props.add(key="detr_export.module", value="model.encoder")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(np.float32(1), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    command = [sys.executable, "-c", PARSE, str(tmp_path / "a.onnx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert "does not read a.onnx: DequantizeLinear dequantise, traced in model.encoder: " in line
    assert "input has type Int32 but must have type" in line
    assert "no driver" not in line
    assert "catchCudaError" not in line
    assert done.stderr == ""


def test_the_command_says_one_line_when_the_compiler_refuses(files: Files, tmp_path: Path) -> None:
    require_installed()
    command = ("trt", files["detection", "fp32"], "-o", tmp_path / "a.engine", "--rtx", "--compute-capability", "7.5")
    line = fails(*command, "--profile", SMALL[0], before=REAL)
    assert "FP32 GEMM is not supported" in line
    assert ", traced in model." in line
    assert list(tmp_path.iterdir()) == []


def test_the_command_compiles(files: Files, tmp_path: Path) -> None:
    require_installed()
    done = run("trt", files["detection", "fp16"], "-o", tmp_path / "a.engine", "--rtx", "--fp16", "--profile", SMALL[0])
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].startswith(
        "  building for compute capability 8.0, 8.6, 8.9, 12.0, 12.1 with TensorRT"
    )
    assert all(line.startswith("  ") for line in done.stderr.splitlines())  # progress, and nothing of the library's own
    assert done.stdout.splitlines()[-1].startswith("compiled, never run: ")
    assert (tmp_path / "a.engine").read_bytes().startswith(b"vtrt")  # by this an engine without a sidecar is known
