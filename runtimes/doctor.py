"""Finds out what is installed here, what of it works, and which known issues concern it.

Everything is tried and nothing is assumed. A package that is installed but does not load is a finding, not a crash.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata as distributions
from importlib import resources
from typing import Any, Optional

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.cpu import int8_note
from detr_export.runtimes.devices import TENSORRT
from detr_export.runtimes.errors import DetrError, first_line

_PACKAGES = (
    ("torch",),
    ("onnxruntime", "onnxruntime-gpu"),
    ("openvino",),
    ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
    ("tensorrt",),
    ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    ("cuda-python", "cuda-bindings"),
    ("pycuda",),
)


@dataclass(frozen=True)
class KnownIssue:
    """Something that goes wrong with some versions on some GPUs."""

    reference: str  # address of the public report
    what: str
    oldest: str  # first version of TensorRT that has it
    newest: Optional[str]  # last version of TensorRT that has it; None: no version without it is known
    onnxruntime: Optional[str]  # first ONNX Runtime whose TensorRT provider has it; None: it is in TensorRT itself
    compute_capability: Optional[tuple[tuple[int, int], ...]]  # GPUs that have it; None: all
    precisions: tuple[str, ...]
    remedy: str

    def concerns(
        self, tensorrt: str, compute_capability: Optional[tuple[int, int]], onnxruntime: Optional[str] = None
    ) -> bool:
        """Whether the issue may occur here. On an unknown GPU, every issue of some GPUs may.

        Args:
            tensorrt: its version.
            compute_capability: the GPU's.
            onnxruntime: the version whose provider runs this TensorRT; None where it runs by itself.
        """
        if self.onnxruntime is not None and (onnxruntime is None or _version(onnxruntime) < _version(self.onnxruntime)):
            return False
        here = _version(tensorrt)
        if here < _version(self.oldest) or (self.newest is not None and here > _version(self.newest)):
            return False
        return self.compute_capability is None or compute_capability is None or compute_capability in self.compute_capability


@dataclass(frozen=True)
class Ability:
    """Something that a user may want to do here."""

    name: str
    works: bool
    note: str  # what it works with, or what is missing and how to get it


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    python: str
    platform: str
    packages: dict[str, Optional[str]]  # versions; None = not installed
    providers: tuple[str, ...]  # execution providers of ONNX Runtime
    tensorrt: Optional[str]  # the version that the library gives, if it loads
    provider_tensorrt: Optional[str]  # the version that ONNX Runtime's TensorRT provider runs, if it has one and that loads
    tensorrt_rtx: Optional[str]  # the same
    gpu: Optional[str]
    compute_capability: Optional[tuple[int, int]]
    driver_cuda: Optional[str]  # newest CUDA version that the driver supports
    abilities: tuple[Ability, ...]
    issues: tuple[KnownIssue, ...]  # known issues of these TensorRTs and this GPU

    def to_dict(self) -> dict[str, Any]:
        """The findings in types that JSON has."""
        return asdict(self)

    def summary(self) -> str:
        """The findings as text for people."""
        gpu = "none"
        if self.gpu is not None and self.compute_capability is not None:
            major, minor = self.compute_capability
            gpu = f"{self.gpu} (compute capability {major}.{minor}), driver for CUDA up to {self.driver_cuda}"
        lines = [f"Python {self.python} on {self.platform}", f"GPU: {gpu}", "installed:"]
        lines += [f"  {name} {version or '-'}" for name, version in self.packages.items()]
        lines += [f"  ONNX Runtime's providers: {', '.join(self.providers) or '-'}"]
        if self.provider_tensorrt is not None:
            lines += [f"  ONNX Runtime's TensorRT provider runs TensorRT {self.provider_tensorrt}"]
        lines += ["what works:"]
        lines += [f"  {'yes' if item.works else 'no '} {item.name}: {item.note}" for item in self.abilities]
        if self.issues:
            versions = " and ".join(dict.fromkeys(filter(None, (self.tensorrt, self.provider_tensorrt))))
            lines += [f"known to go wrong with TensorRT {versions}" + (" here:" if self.gpu else ", on some GPUs:")]
            lines += [f"  {item.what}; {item.remedy} ({item.reference})" for item in self.issues]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Looks at this machine. It raises nothing."""
    # What loads
    device, no_device = _try(cuda_opening.open_device)
    providers, no_onnxruntime = _try(_onnxruntime_providers)
    openvino, no_openvino = _try(_openvino_version)
    tensorrt, no_tensorrt = _try(_tensorrt_version)
    provider, onnxruntime = _try(_provider_tensorrt)[0] or (None, None)
    tensorrt_rtx, no_tensorrt_rtx = _try(_tensorrt_rtx_version)
    capability = device.compute_capability if device is not None else None

    # What can be done with it
    abilities = (
        _torch_ability(),
        Ability("ONNX files on the CPU", providers is not None, no_onnxruntime or "CPUExecutionProvider"),
        Ability("ONNX files with OpenVINO (--device openvino)", openvino is not None, no_openvino or f"OpenVINO {openvino}"),
        Ability("int8 ONNX files on the CPU", providers is not None, no_onnxruntime or int8_note()),
        _provider_ability("ONNX files with CUDA (--device cuda)", "CUDAExecutionProvider", providers, no_device),
        _provider_ability("ONNX files with TensorRT (--device tensorrt)", "TensorrtExecutionProvider", providers, no_device),
        Ability(
            "TensorRT engines (detr-export trt, --device cuda)",
            tensorrt is not None and device is not None,
            no_tensorrt or no_device or f"TensorRT {tensorrt}",
        ),
        Ability(
            "compiling TensorRT-RTX engines (detr-export trt --rtx)",
            tensorrt_rtx is not None,
            no_tensorrt_rtx or f"TensorRT-RTX {tensorrt_rtx}; running one takes a GPU",
        ),
    )

    return Diagnosis(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: version for group in _PACKAGES for name, version in [_installed(group)]},
        providers=providers or (),
        tensorrt=tensorrt,
        provider_tensorrt=provider,
        tensorrt_rtx=tensorrt_rtx,
        gpu=device.name if device is not None else None,
        compute_capability=capability,
        driver_cuda=device.driver if device is not None else None,
        abilities=abilities,
        issues=tuple(
            item
            for item in known_issues()
            if (tensorrt is not None and item.concerns(tensorrt, capability))
            or (provider is not None and item.concerns(provider, capability, onnxruntime))
        ),
    )


def known_issues() -> tuple[KnownIssue, ...]:
    """All issues that are on record in `known_issues.json`."""
    records = json.loads((resources.files("detr_export.runtimes") / "known_issues.json").read_text(encoding="utf-8"))
    found = []
    for record in records:
        capabilities = record["compute_capability"]
        pairs = None if capabilities is None else tuple((major, minor) for major, minor in capabilities)
        found.append(KnownIssue(**{**record, "compute_capability": pairs, "precisions": tuple(record["precisions"])}))
    return tuple(found)


def _try(look: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `look`, or None and the reason."""
    try:
        return look(), ""
    except DetrError as error:
        return None, str(error)
    except Exception as error:  # a library that does not load may raise anything
        return None, f"{type(error).__name__}: {first_line(error)}"


def _onnxruntime_providers() -> tuple[str, ...]:
    from detr_export.runtimes.backends.ort import providers as ort_providers

    ort_providers.refuse_two_installations()
    return tuple(ort_providers.onnxruntime.get_available_providers())


def _openvino_version() -> str:
    from detr_export.runtimes.backends.openvino import session as openvino_session

    return openvino_session.working_version()


def _provider_tensorrt() -> Optional[tuple[str, str]]:
    """The versions of the TensorRT that ONNX Runtime's provider runs, and of ONNX Runtime; None without such a provider."""
    from detr_export.runtimes.backends.ort import providers as ort_providers

    if ort_providers.PROVIDERS[TENSORRT] not in _onnxruntime_providers():
        return None
    version = ort_providers.linked_tensorrt()
    return None if version is None else (f"{version[0]}.{version[1]}", ort_providers.onnxruntime.__version__)


def _tensorrt_version() -> str:
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    return tensorrt_api.tensorrt().version


def _tensorrt_rtx_version() -> str:
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    return tensorrt_api.tensorrt_rtx().version


def _torch_ability() -> Ability:
    name = "checkpoints in PyTorch"
    found, reason = _try(_torch_devices)
    return Ability(name, found is not None, reason or found)


def _torch_devices() -> str:
    from detr_export.runtimes.backends import torch_session

    return "CPU and CUDA" if torch_session.torch.cuda.is_available() else "CPU; this PyTorch sees no CUDA device"


def _provider_ability(name: str, provider: str, providers: Optional[tuple[str, ...]], no_device: str) -> Ability:
    if providers is None or provider not in providers:
        return Ability(name, False, f"this onnxruntime has no {provider}; it comes with: pip install 'detr-export[gpu]'")
    return Ability(name, not no_device, no_device or provider)


def _installed(names: tuple[str, ...]) -> tuple[str, Optional[str]]:
    """The name and version of the first package that is installed; if none is, the first name and None."""
    versions = [(name, _try(lambda name=name: distributions.version(name))[0]) for name in names]  # type: ignore[misc]
    return next((item for item in versions if item[1] is not None), versions[0])


def _version(text: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)
