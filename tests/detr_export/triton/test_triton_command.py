"""`detr-export triton` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from detr_export.cli import app
from detr_export.triton.config import read_config
from tests.detr_export.triton.files import WHOLE, write_onnx
from tests.test_cli import fails, succeeds

NO_CLIENT = """
import sys
sys.modules["tritonclient"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "tritonclient" else find(name, *more)
"""


def test_writes_a_repository(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    place = tmp_path / "repository"
    options = ("--input", "encoded", "--max-batch", "4", "--max-wait-ms", "2.5", "--preferred-batch", "2")
    more = ("--preferred-batch", "4", "--warm-up", "48x64", "--warm-up", "64x48", "--keep-versions", "2")
    written = json.loads(succeeds("triton", file, "-o", place, "--threshold", "0.3", *options, *more, "--json"))
    assert (written["path"], written["backend"], written["versions"]) == (str(place / "net"), "python", [1])
    config = read_config(place / "net" / "config.pbtxt")[1]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert [*config.dynamic_batching.preferred_batch_size] == [2, 4]
    assert [sample.name for sample in config.model_warmup] == ["48x64", "64x48"]
    assert config.version_policy.latest.num_versions == 2
    assert config.parameters["threshold"].string_value == "0.3"

    printed = succeeds("triton", file, "-o", place, "--version", "2")
    assert printed.splitlines() == [
        f"{place / 'net'}  version 2, backend python, batches of up to 4",
        "  input   image STRING (1)",
        "  input   threshold FP32 (1)",
        "  output  scores FP32 (any)",
        "  output  labels INT64 (any)",
        "  output  boxes FP32 (any, 4)",
        "  output  names STRING (any)",
    ]


def test_errors_are_one_line(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx", WHOLE)
    assert "--threshold means nothing" in fails("triton", file, "-o", tmp_path / "r", "--threshold", "0.3")
    assert "expected HEIGHTxWIDTH" in fails("triton", file, "-o", tmp_path / "r", "--warm-up", "large")
    assert "no ONNX file and no engine" in fails("triton", "demo", "-o", tmp_path / "r")
    missing = fails("triton", file, "-o", tmp_path / "r", before=NO_CLIENT)
    assert missing == "error: tritonclient is not installed; run: pip install 'detr-export[triton]'"
    for wrong in (("--max-batch", "0"), ("--task", "sleep"), ("--version", "0"), ("--threshold", "2")):
        assert CliRunner().invoke(app, ["triton", str(file), "-o", str(tmp_path / "r"), *wrong]).exit_code == 2
    assert CliRunner().invoke(app, ["triton", str(file)]).exit_code == 2
