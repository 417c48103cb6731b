"""Which of TensorRT's attributes the project uses, read off its source.

The files that call TensorRT give its objects fixed names, and those tell the classes: see `backends/tensorrt/api.py`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CLASSES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
OLD_ONLY = "Generation8"  # the class of `tensorrt_api` whose attributes the newest version need not have
RTX_ONLY = "GenerationRtx"  # and the class whose attributes TensorRT need not have
OWN_METHODS = {"cause"}  # of subclasses of TensorRT's classes: not called by TensorRT

Usage = dict[str, set[str]]  # attributes by class; those of the module itself under ""


def sources() -> list[Path]:
    """The files that call TensorRT."""
    files = sorted(path for room in ("runtimes", "detr_export") for path in (ROOT / room).rglob("*.py"))
    words = ("backends.tensorrt import api", "backends.tensorrt.api")
    return [
        path
        for path in files
        if path.parts[-2:] == ("tensorrt", "api.py") or any(word in path.read_text(encoding="utf-8") for word in words)
    ]


def usage(text: str, only: str | None = None) -> Usage:
    """What a source uses: all but what is in the classes of one kind of TensorRT alone, or only what is in one of them."""
    found: Usage = defaultdict(set)
    tree = ast.parse(text)
    classes = (OLD_ONLY, RTX_ONLY) if only is None else (only,)
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in classes]
    chosen = {id(child) for node in inside for child in ast.walk(node)}
    for node in ast.walk(tree):
        if (id(node) in chosen) != (only is not None):
            continue
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if _is_module(getattr(base, "value", None)):
                    assert isinstance(base, ast.Attribute)
                    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                    found[base.attr] |= {name for name in methods - OWN_METHODS if not name.startswith("__")}
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            _add(node, found)
    return dict(found)


def _add(node: ast.Attribute, found: Usage) -> None:
    value = node.value
    if _is_module(value):
        found[""].add(node.attr)
    elif isinstance(value, ast.Attribute) and _is_module(value.value):
        found[value.attr].add(node.attr)
    else:
        name = value.id if isinstance(value, ast.Name) else value.attr.lstrip("_") if _of_self(value) else ""
        if name in CLASSES:
            found[CLASSES[name]].add(node.attr)


def _is_module(node: ast.AST | None) -> bool:
    """`trt`, `self.trt` or `library.trt`."""
    return (isinstance(node, ast.Name) and node.id == "trt") or (
        isinstance(node, ast.Attribute) and node.attr == "trt" and isinstance(node.value, ast.Name)
    )


def _of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def merged(parts: list[Usage]) -> Usage:
    """All of them in one."""
    found: Usage = defaultdict(set)
    for part in parts:
        for name, attributes in part.items():
            found[name] |= attributes
    return dict(found)
