"""Where an engine is built, and for which GPUs: TensorRT builds on its GPU for its GPU, TensorRT-RTX compiles anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_export.engines.options import EngineOptions, refused_option
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt.api import ComputeCapability, Library, capability_text, library_named
from detr_export.runtimes.errors import BackendError, InputError

_AMPERE = (8, 0)  # the oldest that shares an engine with newer GPUs; Turing needs its own, without fp32 products


@dataclass(frozen=True)
class Place:
    """The library, and its GPU."""

    library: Library
    device: CudaDevice | None  # None: TensorRT-RTX, on a machine without a GPU
    targets: tuple[ComputeCapability, ...]  # compute capabilities that TensorRT-RTX compiles for; none for TensorRT

    @property
    def runs_here(self) -> bool:
        """Whether the engine can run on the GPU here, and so be compared with its checkpoint."""
        return self.device is not None and (not self.targets or self.device.compute_capability in self.targets)

    @property
    def tuned_for(self) -> CudaDevice | None:
        """The GPU on which TensorRT chooses kernels by measuring them; None for TensorRT-RTX, which measures nothing."""
        return None if self.targets else self.device

    def __str__(self) -> str:
        return targets_text(self.targets) if self.tuned_for is None else self.tuned_for.name


def find_place(options: EngineOptions) -> Place:
    """Opens the library and the GPU, and refuses what the library does not have.

    Raises:
        BackendError: the library is not installed; or it needs a GPU, and there is none; or it does not have an option.
        InputError: the library does not know a compute capability.
    """
    library = library_named(options.library)
    refused = refused_option(options.settings, options.timing_cache, library.generation.refused)
    if refused is not None:
        raise BackendError(f"{library.title} does not have {refused}; leave it out")
    known = library.generation.compute_capabilities()
    if not known:
        if options.targets:
            raise InputError(
                f"{library.title} builds for the GPU that it runs on; compute capabilities are for TensorRT-RTX"
            )
        return Place(library, cuda_opening.open_device(options.device), ())
    unknown = [target for target in options.targets if target not in known]
    if unknown:
        raise InputError(f"{library} does not know {targets_text(unknown[:1])}; expected some of {_dotted(known)}")
    return Place(library, _gpu(options.device), tuple(sorted(set(options.targets))) or _portable(known))


def targets_text(targets: Sequence[ComputeCapability]) -> str:
    """For people: `compute capability 8.6, 8.9`."""
    return f"compute capability {_dotted(targets)}"


def _dotted(targets: Sequence[ComputeCapability]) -> str:
    return ", ".join(map(capability_text, targets))


def _portable(known: tuple[ComputeCapability, ...]) -> tuple[ComputeCapability, ...]:
    return tuple(item for item in known if item >= _AMPERE)


def _gpu(index: int) -> CudaDevice | None:
    """The GPU here; None if there is none, or nothing to use it with."""
    try:
        return cuda_opening.open_device(index)
    except BackendError:
        return None
