"""Building with TensorRT-RTX, on its double: with a GPU that fits, with another one, and without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from detr_export.engines.build import build_engine, build_from_source
from detr_export.engines.gate import verify_engine
from detr_export.engines.ladder import LADDER, steps
from detr_export.engines.options import BuildSettings, EngineOptions
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, sidecar_path, write_sidecar
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError, VerificationError
from tests.detr_export.recorder import Recorder
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import RTX

SMALL = EngineProfile((1, 64, 64), (1, 64, 96), (2, 80, 96))
OPTIONS = EngineOptions(library="tensorrt_rtx", profiles=(SMALL,))
FROM_AMPERE = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


@pytest.fixture
def no_gpu(rtx: Knobs, monkeypatch: pytest.MonkeyPatch) -> Knobs:
    """TensorRT-RTX on a machine without a GPU."""

    def refuse(index: int = 0) -> None:
        raise BackendError("no NVIDIA driver is loaded")

    monkeypatch.setattr(cuda_opening, "open_device", refuse)
    return rtx


@pytest.fixture
def gpu(rtx: Knobs) -> Knobs:
    """TensorRT-RTX on a machine with a GPU that it compiles for."""
    rtx.device.compute_capability = (8, 9)
    return rtx


def options(**changes: object) -> EngineOptions:
    return EngineOptions(**{"library": "tensorrt_rtx", "profiles": (SMALL,), **changes})  # type: ignore[arg-type]


def test_compiles_without_a_gpu(no_gpu: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    progress = Recorder()
    result = build_engine(tiny_onnx, tmp_path / "a.engine", OPTIONS, progress)
    assert progress.lines == [
        f"building for compute capability 8.0, 8.6, 8.9, 12.0, 12.1 with TensorRT-RTX {RTX}, 1 profiles"
    ]
    about = read_sidecar(tmp_path / "a.engine")
    assert about == result.sidecar
    assert (about.library, about.library_version, about.targets) == ("tensorrt_rtx", RTX, FROM_AMPERE)
    assert (about.gpu, about.cuda, about.verified, about.metadata.parity) == (None, None, False, None)
    assert about.attestation is not None
    assert about.attestation["attested"] == about.attestation["total"] > 0
    assert about.kernels is not None
    assert about.kernels["plan_bytes"] == result.size_bytes
    first, *_, last = result.summary().splitlines()
    assert first.endswith(f"MB, fp32, TensorRT-RTX {RTX}, compute capability 8.0, 8.6, 8.9, 12.0, 12.1")
    assert last == f"compiled, never run: nobody knows its numbers; on its GPU run detr-export verify {tmp_path}/a.engine"
    built = no_gpu.builds[0]
    assert (built["network_flags"], built["targets"]) == (0, ["SM80", "SM86", "SM89", "SM120", "SM121"])
    assert "TF32" not in built["flags"]


def test_targets_that_are_named(no_gpu: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    result = build_engine(tiny_onnx, tmp_path / "a.engine", options(targets=((12, 0), (8, 6), (12, 0))))
    assert no_gpu.builds[0]["targets"] == ["SM86", "SM120"]
    assert result.sidecar.targets == ((8, 6), (12, 0))


def test_on_a_gpu_that_fits_it_goes_through_the_gate(gpu: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    result = build_engine(tiny_onnx, tmp_path / "a.engine", OPTIONS)
    assert result.parity is not None
    assert result.parity.passed
    assert result.sidecar.verified
    assert result.sidecar.targets == FROM_AMPERE
    assert result.sidecar.gpu is None  # nothing was tuned on it
    assert "verified over 6 batches" in result.summary()


@pytest.mark.usefixtures("rtx")
def test_on_another_gpu_it_is_not_run(tiny_onnx: Path, tmp_path: Path) -> None:
    """The double's GPU has 9.0, which TensorRT-RTX does not compile for."""
    assert not build_engine(tiny_onnx, tmp_path / "a.engine", OPTIONS).sidecar.verified


@pytest.mark.usefixtures("gpu")
def test_no_verify_leaves_it_unverified(tiny_onnx: Path, tmp_path: Path) -> None:
    result = build_engine(tiny_onnx, tmp_path / "a.engine", options(verify=False))
    assert not result.sidecar.verified
    assert "compiled, never run" in result.summary()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ((9, 0),)}, "does not know compute capability 9.0; expected some of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1$"),
        ({"settings": BuildSettings(optimization_level=3)}, "does not have --optimization-level: .*; leave it out"),
        ({"settings": BuildSettings(version_compatible=True)}, "does not have --version-compatible: .*; leave it out"),
        (
            {"settings": BuildSettings(hardware_compatible=True)},
            "does not have --hardware-compatible: name the GPUs with --compute-capability; leave it out",
        ),
        ({"timing_cache": Path("t.cache")}, "does not have --timing-cache: its builder measures nothing; leave it out"),
        ({"checkpoint": "demo"}, "cannot run here, so it is not compared with demo; leave --checkpoint out"),
    ],
)
def test_refuses_what_does_not_apply(changes: dict[str, object], message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises((BackendError, InputError), match=message):
        build_engine(tiny_onnx, tmp_path / "a.engine", options(**changes))
    assert list(tmp_path.glob("a.engine*")) == []


@pytest.mark.usefixtures("no_gpu")
def test_the_fallback_needs_the_gate(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"--fallback builds the first engine that agrees .*, and here none is run"):
        build_from_source("demo", tmp_path / "a.engine", OPTIONS, LADDER)


def test_what_applies_reaches_the_builder(no_gpu: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    build_engine(
        tiny_onnx, tmp_path / "a.engine", options(settings=BuildSettings(workspace_mib=64, aux_streams=2), overwrite=True)
    )
    assert (no_gpu.builds[0]["workspace"], no_gpu.builds[0]["aux_streams"]) == (64 << 20, 2)


@pytest.mark.usefixtures("tensorrt")
def test_tensorrt_names_no_targets(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TensorRT builds for the GPU that it runs on"):
        build_engine(tiny_onnx, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,), targets=((8, 9),)))


@pytest.mark.usefixtures("no_gpu")
def test_an_fp16_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = build_from_source(str(tiny_checkpoint), tmp_path / "a.engine", OPTIONS, steps(fp16=True, fallback=False))
    assert result.sidecar.precision == "fp16"
    assert result.sidecar.layers["fp16"] > 10
    assert result.sidecar.metadata.opset == 18


def test_a_log_of_another_precision_is_refused(no_gpu: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    no_gpu.compute_precision = "HALF"
    with pytest.raises(ArtifactError, match="in fp16 instead of fp32"):
        build_engine(tiny_onnx, tmp_path / "a.engine", OPTIONS)
    assert list(tmp_path.glob("a.engine*")) == []


# ---- verify -------------------------------------------------------------------------------------------------------------


def test_verify_completes_the_sidecar(
    no_gpu: Knobs, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "a.engine"
    build_engine(tiny_onnx, engine, OPTIONS)
    before = read_sidecar(engine)
    with pytest.raises(BackendError, match="no NVIDIA driver is loaded"):
        verify_engine(engine)

    no_gpu.device.compute_capability = (8, 6)  # the file is now on another machine
    monkeypatch.setattr(cuda_opening, "open_device", lambda index=0: no_gpu.device)
    parity = verify_engine(engine)
    assert parity.passed
    assert parity.cases == 6
    after = read_sidecar(engine)
    assert before is not None
    assert after is not None
    assert (before.verified, after.verified) == (False, True)
    assert after.metadata.parity == json.loads(json.dumps(parity.to_dict()))
    assert (before.sha256, before.build_key, before.targets) == (after.sha256, after.build_key, after.targets)


@pytest.mark.usefixtures("tensorrt")
def test_verify_takes_engines_of_tensorrt(tiny_onnx: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    build_engine(tiny_onnx, engine, EngineOptions(profiles=(SMALL,), verify=False))
    verify_engine(engine, device="cuda:0")
    about = read_sidecar(engine)
    assert about is not None
    assert about.verified


def test_an_engine_that_disagrees_stays_unverified(gpu: Knobs, tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    gpu.wrong_by = 0.5
    build_from_source(str(tiny_checkpoint), engine, options(verify=False), steps(fp16=True, fallback=False))
    before = sidecar_path(engine).read_bytes()
    with pytest.raises(VerificationError, match="disagrees with its checkpoint"):
        verify_engine(engine)
    assert sidecar_path(engine).read_bytes() == before


@pytest.mark.usefixtures("gpu")
def test_verify_refuses(tiny_onnx: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    with pytest.raises(ArtifactError, match="does not exist or is not a file"):
        verify_engine(engine)
    build_engine(tiny_onnx, engine, options(verify=False))
    with pytest.raises(BackendError, match="an engine needs a GPU"):
        verify_engine(engine, device="cpu")
    about = read_sidecar(engine)
    assert about is not None
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"is not the file that a\.engine\.json describes"):
        verify_engine(engine)
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"a\.engine\.json is missing; copy it together with the engine"):
        verify_engine(engine)
    write_sidecar(engine, about)


# ---- the libraries ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_tensorrt")
def test_without_the_package(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensorrt_rtx is not installed; run: pip install 'detr-export\[rtx\]'"):
        build_engine(tiny_onnx, tmp_path / "a.engine", OPTIONS)


@pytest.mark.usefixtures("no_tensorrt")
def test_on_a_platform_that_has_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_export.runtimes.backends.tensorrt.rtx_library import import_tensorrt_rtx

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendError, match=r"PyPI has it for Linux on x86_64, and this is .*: install NVIDIA's own package"):
        import_tensorrt_rtx()
