"""Compiles ONNX files that are named on standard input, a JSON document a line; a line on standard output answers each.

It is a process of its own, so that a crash of the compiler is a failed test and not the end of all tests.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from detr_export.engines.build import build_engine
from detr_export.engines.options import EngineOptions, parse_capability
from detr_export.runtimes.backends.tensorrt.api import TENSORRT_RTX
from detr_export.runtimes.backends.tensorrt.profiles import parse_profile
from detr_export.runtimes.errors import DetrError


def compile_one(request: dict[str, Any]) -> dict[str, Any]:
    """The result of a build, or its error."""
    try:
        options = EngineOptions(
            library=TENSORRT_RTX,
            targets=tuple(map(parse_capability, request["targets"])),
            profiles=tuple(map(parse_profile, request["profiles"])),
            verify=False,
        )
        with tempfile.TemporaryDirectory() as folder:
            return build_engine(request["file"], Path(folder) / "a.engine", options).to_dict()
    except DetrError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(compile_one(json.loads(line))), flush=True)
