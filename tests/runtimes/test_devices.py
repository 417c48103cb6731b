"""Names of devices: what is read, and what is refused."""

from __future__ import annotations

import pytest

from detr_export.runtimes.devices import Device, parse_device
from detr_export.runtimes.errors import BackendError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda")),
        ("cuda:2", Device("cuda", 2)),
        ("tensorrt", Device("tensorrt")),
        ("tensorrt:1", Device("tensorrt", 1)),
        ("tensorrt-rtx", Device("tensorrt-rtx")),
        ("tensorrt-rtx:3", Device("tensorrt-rtx", 3)),
        ("openvino", Device("openvino")),
    ],
)
def test_devices(text: str, expected: Device) -> None:
    device = parse_device(text)
    assert device == expected
    assert device.builds_engines == text.startswith("tensorrt")
    assert parse_device(str(device)) == device


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu:0",
        "cpu:",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:1:2",
        "tensorrt:",
        "tensorrt:x",
        "rtx",
        "TensorRT",
        "gpu",
        "openvino:",
        "openvino:0",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(BackendError) as caught:
        parse_device(text)
    assert str(caught.value) == f"device is {text!r}; expected cpu, cuda[:N], tensorrt[:N], tensorrt-rtx[:N] or openvino"


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("tensorrt:1", ("cpu", "cuda"), "device is 'tensorrt:1', but PyTorch takes cpu or cuda[:N]"),
        ("cpu", ("cuda",), "device is 'cpu', but PyTorch takes cuda[:N]"),
        ("openvino", ("cpu", "cuda"), "device is 'openvino', but PyTorch takes cpu or cuda[:N]"),
        ("cuda", ("cpu",), "device is 'cuda:0', but PyTorch takes cpu"),
    ],
)
def test_a_backend_names_the_devices_that_it_takes(text: str, kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(BackendError) as caught:
        parse_device(text).require(kinds, "PyTorch")
    assert str(caught.value) == message
    parse_device(kinds[0]).require(kinds, "PyTorch")
