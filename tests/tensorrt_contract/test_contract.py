"""Every attribute of TensorRT's that the project or the double uses exists in the real API of 11.4, 10.16 and RTX 1.7."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from tests.tensorrt_contract import bindings
from tests.tensorrt_contract.usage import OLD_ONLY, ROOT, RTX_ONLY, Usage, merged, sources, usage
from tests.tensorrt_double import Knobs, fake_tensorrt
from tests.tensorrt_double.fixtures import NEWEST, RTX, TEN

VERSIONS = (NEWEST, TEN)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detr-export"


def ask(version: str, asked: Usage, folder: Path) -> list[str]:
    """What a version lacks. Where its bindings cannot be had the test is skipped, but never in CI."""
    try:
        bindings.require_platform()
        if version == RTX:
            bindings.installed(version, bindings.RTX_PACKAGE, "rtx")
            answered, lacking = bindings.missing_in_rtx(asked)
            assert answered == version
            return lacking
        place = bindings.installed(version) if version == NEWEST else bindings.fetched(version, CACHE)
    except bindings.Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    libraries = bindings.compile_stand_ins(folder, int(version.split(".")[0]))
    answered, lacking = bindings.missing(place, libraries, asked)
    assert answered == version
    return lacking


def current() -> Usage:
    return merged([usage(path.read_text(encoding="utf-8")) for path in sources()])


def of_rtx() -> Usage:
    return merged([current(), *(usage(path.read_text(encoding="utf-8"), only=RTX_ONLY) for path in sources())])


def old() -> Usage:
    return merged([usage(path.read_text(encoding="utf-8"), only=OLD_ONLY) for path in sources()])


def test_the_reader_finds_what_is_used() -> None:
    """Or the tests below would pass on a reader that finds nothing."""
    assert {"/".join(path.parts[-2:]) for path in sources()} >= {
        "tensorrt/api.py",
        "tensorrt/execution.py",
        "tensorrt/session.py",
        "engines/builder.py",
    }
    found = current()
    assert found["IExecutionContext"] >= {
        "execute_async_v3",
        "set_input_shape",
        "set_tensor_address",
        "set_optimization_profile_async",
        "get_tensor_shape",
        "set_device_memory",
    }
    assert found["ICudaEngine"] >= {"num_io_tensors", "get_tensor_name", "get_tensor_profile_shape"}
    assert "get_device_memory_size_for_profile_v2" in found["ICudaEngine"]
    assert found["IProgressMonitor"] == {"phase_start", "step_complete", "phase_finish"}
    assert found["ILogger"] == {"log"}
    assert found["BuilderFlag"] == {"TF32", "VERSION_COMPATIBLE"}
    assert found["Builder"] >= {"build_serialized_network", "create_network"}
    assert "STRONGLY_TYPED" in found["NetworkDefinitionCreationFlag"]
    assert "progress_monitor" in found["IBuilderConfig"]
    assert old()["BuilderFlag"] >= {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_project_uses_what_there_is(version: str, tmp_path: Path) -> None:
    assert ask(version, current(), tmp_path) == []


def test_rtx_has_what_its_path_uses(tmp_path: Path) -> None:
    assert ask(RTX, of_rtx(), tmp_path) == []


def test_only_rtx_names_its_targets(tmp_path: Path) -> None:
    """The reason for `GenerationRtx`."""
    lacking = ask(NEWEST, of_rtx(), tmp_path)
    config = ["IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"]
    assert lacking == ["ComputeCapability", *config]


def test_what_is_for_8_is_the_old_api(tmp_path: Path) -> None:
    """10.16 still has what 8.5 has and 11 has not."""
    assert ask(TEN, old(), tmp_path) == []


@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_dtypes_and_severities_are_named_as_here(version: str, tmp_path: Path) -> None:
    names: Usage = {"DataType": set(tensorrt_api._NUMPY_NAMES), "ILogger": set(tensorrt_api._LEVELS)}
    assert names["ILogger"] == {"VERBOSE", "INFO", "WARNING"}
    assert ask(version, names, tmp_path) == []


@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_the_double_has_nothing_of_its_own(version: str, tmp_path: Path) -> None:
    module = fake_tensorrt(version, Knobs(), rtx=version == RTX)
    offered: Usage = {"": {name for name in vars(module) if not name.startswith("_")}}
    log = module.ILogger()
    builder = module.Builder(log)
    network = builder.create_network(2)
    made = [builder, network, builder.create_builder_config(), builder.create_optimization_profile()]
    made += [module.Runtime(log), module.OnnxParser(network, log), module.ILayer((None, None)), module.ITimingCache(b"")]
    attributes = {type(item).__name__: set(vars(item)) for item in made}
    for name in offered[""]:
        own = {item for item in vars(getattr(module, name)) if not item.startswith("_")}
        own |= {item for item in attributes.get(name, ()) if not item.startswith("_")}
        offered[name] = own - set(dir(bytes)) - set(dir(int))
    assert sum(map(len, offered.values())) > 80
    assert ask(version, offered, tmp_path) == []


@pytest.mark.parametrize(
    "name", ["execute_async_v3", "set_tensor_address", "STRONGLY_TYPED", "IProgressMonitor", "step_complete"]
)
def test_a_renamed_one_fails(name: str, tmp_path: Path) -> None:
    renamed = merged(
        [usage(re.sub(rf"\b{name}\b", f"{name}_renamed", path.read_text(encoding="utf-8"))) for path in sources()]
    )
    lacking = ask(NEWEST, renamed, tmp_path)
    assert lacking
    assert all(f"{name}_renamed" in item for item in lacking)


def test_the_newest_has_no_precision_flags(tmp_path: Path) -> None:
    """The reason for `Generation8`; were they back, it would be worth knowing."""
    lacking = ask(NEWEST, old(), tmp_path)
    assert {"BuilderFlag.FP16", "BuilderFlag.INT8", "ILayer.precision", "ILayer.set_output_type"} <= set(lacking)


def test_the_newest_is_the_extras_and_the_constraints() -> None:
    for file in ("pyproject.toml", "constraints.txt"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"{bindings.PACKAGE}=={NEWEST}" in text
        assert f"{bindings.RTX_PACKAGE}=={RTX}" in text
