"""The names of devices: `cpu`, `cuda`, `tensorrt`, `tensorrt-rtx` and `openvino`.

`cuda` and the two of TensorRT take the number of a GPU: `cuda:1`. `openvino` is the CPU, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from detr_export.runtimes.errors import BackendError

CPU, CUDA, TENSORRT, RTX, OPENVINO = "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino"
KINDS = (CPU, CUDA, TENSORRT, RTX, OPENVINO)
_WITHOUT_NUMBER = (CPU, OPENVINO)


@dataclass(frozen=True)
class Device:
    """Where a model runs, and with what."""

    kind: str  # one of `KINDS`
    index: int = 0  # number of the GPU; 0 on the CPU

    def __str__(self) -> str:
        return self.kind if self.kind in _WITHOUT_NUMBER else f"{self.kind}:{self.index}"

    @property
    def builds_engines(self) -> bool:
        """Whether ONNX Runtime builds TensorRT engines for it, which it does for known shapes only."""
        return self.kind in (TENSORRT, RTX)

    def require(self, kinds: tuple[str, ...], backend: str) -> None:
        """Refuses a kind of device that a backend does not have.

        Args:
            kinds: those that it has.
            backend: its name, for the message.

        Raises:
            BackendError: says which devices the backend takes.
        """
        if self.kind not in kinds:
            raise BackendError(f"device is '{self}', but {backend} takes {_named(kinds)}")


def parse_device(text: str) -> Device:
    """Reads the name of a device. A GPU without a number is the first one.

    Raises:
        BackendError: there is no such device; the message lists all names.
    """
    kind, _, index = text.partition(":")
    if kind not in KINDS or (text != kind and (kind in _WITHOUT_NUMBER or not index.isdecimal())):
        raise BackendError(f"device is {text!r}; expected {_named(KINDS)}")
    return Device(kind, int(index or 0))


def _named(kinds: tuple[str, ...]) -> str:
    """The names of some devices, for a message: "cpu or cuda[:N]"."""
    names = [kind if kind in _WITHOUT_NUMBER else f"{kind}[:N]" for kind in kinds]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
