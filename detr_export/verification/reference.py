"""What a file is compared with: its checkpoint in float64, and in the arithmetic whose rounding the file may share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from detr_export.graphs.fp16 import TENSOR_CORE_DEPTH
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec
from detr_export.verification.cases import Case, Feeds, make_feeds
from detr_export.verification.differences import distance

Outputs = Mapping[str, np.ndarray]
_MASKS_AT_ONCE = 10


class Reference:
    """A checkpoint in several arithmetics. It keeps what it computed: an fp16 file is compared with it twice.

    Args:
        double: the checkpoint in float64, which counts as the truth; its `pixel_values` are float64.
        rounded: the checkpoint in the arithmetics of each precision that it can be run in: "fp32", and "fp16".
    """

    def __init__(self, double: Session, rounded: Mapping[str, Sequence[Session]]) -> None:
        self._double, self._rounded = double, rounded
        self._feeds: dict[tuple[Any, ...], Feeds] = {}
        self._truths: dict[tuple[Any, ...], Outputs] = {}
        self._noise: dict[tuple[Any, ...], Mapping[str, float]] = {}

    @property
    def metadata(self) -> Metadata:
        """The checkpoint's."""
        assert self._double.metadata is not None  # a checkpoint always has it
        return self._double.metadata

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the checkpoint gives."""
        return self._double.outputs

    def feeds(self, case: Case, metadata: Metadata, seed: int) -> Feeds:
        """The images of a case, for a file with this metadata."""
        key = _key(case, metadata, seed)
        if key not in self._feeds:
            channels = self._double.inputs[0].shape[1]
            assert isinstance(channels, int)
            self._feeds[key] = make_feeds(case, channels, metadata, seed)
        return self._feeds[key]

    def truth(self, case: Case, metadata: Metadata, seed: int) -> Outputs:
        """The outputs in float64."""
        key = _key(case, metadata, seed)
        if key not in self._truths:
            self._truths[key] = self._double.run(dict(self.feeds(case, metadata, seed).exact))
        return self._truths[key]

    def noise(self, precision: str, case: Case, metadata: Metadata, seed: int) -> Mapping[str, float]:
        """How far the checkpoint in the arithmetics of a precision is off the truth, by output: the largest difference."""
        key = (precision, *_key(case, metadata, seed))
        if key not in self._noise:
            truth = self.truth(case, metadata, seed)
            self._noise[key] = self._distances(precision, self.feeds(case, metadata, seed), truth)
        return self._noise[key]

    def measure(self, precision: str, feeds: Feeds) -> tuple[Outputs, Mapping[str, float]]:
        """The outputs in float64 and the noise, for images of the caller's own. Neither is kept."""
        truth = self._double.run(dict(feeds.exact))
        return truth, self._distances(precision, feeds, truth)

    def exact(self, pixel_values: np.ndarray) -> Outputs:
        """The outputs in float64 for float32 (B, 3, H, W), images without padding. They are not kept."""
        return self._double.run({"pixel_values": pixel_values.astype(np.float64)})

    def rounded(self, precision: str, pixel_values: np.ndarray) -> list[Outputs]:
        """As `exact`, in each of the arithmetics of a precision."""
        return [session.run({"pixel_values": pixel_values}) for session in self._rounded[precision]]

    def _distances(self, precision: str, feeds: Feeds, truth: Outputs) -> dict[str, float]:
        runs = [session.run(dict(feeds.checkpoint)) for session in self._rounded[precision]]
        return {name: max(distance(given[name], value) for given in runs) for name, value in truth.items()}


def reference_of(session: TorchSession) -> Reference:
    """The reference of a checkpoint that is open in PyTorch, on the CPU and in float32."""
    model, metadata, channels = session.model, session.metadata, session.inputs[0].shape[1]
    assert isinstance(model, DeployedModel)
    assert isinstance(channels, int)
    assert metadata is not None  # a checkpoint always has it
    if isinstance(model.model, DetrForSegmentation):
        model.model.masks_at_once = _MASKS_AT_ONCE
    double = TorchSession(copy.deepcopy(model).double(), metadata, channels)
    half = [TorchSession(Fp16Products(model, accumulates), metadata, channels) for accumulates in (False, True)]
    return Reference(double, {"fp32": [session], "fp16": half})


class Fp16Products(nn.Module):
    """A model whose matrix products and convolutions take fp16 values and weights, add in fp32, and give fp16 values.

    That is how an fp16 file is computed on a GPU: everything between the products loses less. What it is off by is the noise
    floor of fp16, found without the file's own graph. The last layer of the box head stays fp32, as it does in a file.

    Args:
        model: in float32; it is shared, not copied.
        accumulates: the products of an attention add in fp16, as some fused attention kernels do (NVIDIA/TensorRT 4397).
    """

    def __init__(self, model: DeployedModel, accumulates: bool = False) -> None:
        super().__init__()
        self.model = model
        self.accumulates = accumulates
        self.output_names = model.output_names
        last_layers = [item for name, item in model.named_parameters() if name.endswith("bbox_predictor.layers.2.weight")]
        (self._last_layer,) = last_layers

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """As `DeployedModel.forward`."""
        with _RoundedProducts(exempt=self._last_layer, accumulates=self.accumulates):
            return self.model(pixel_values, pixel_mask)


class _RoundedProducts(TorchFunctionMode):
    _LEARNED = (torch.conv2d, nn.functional.linear)  # products with weights: their results are stored in fp16, too
    _PRODUCTS = (*_LEARNED, torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul)

    def __init__(self, exempt: Tensor, accumulates: bool) -> None:
        super().__init__()
        self._exempt = exempt
        self._accumulates = accumulates

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._PRODUCTS or any(item is self._exempt for item in args):
            return func(*args, **kwargs)
        args = tuple(_to_fp16_and_back(item) if isinstance(item, Tensor) else item for item in args)
        if func not in self._LEARNED and self._accumulates:
            return _added_in_fp16(*args)
        result = func(*args, **kwargs)
        return _to_fp16_and_back(result) if func in self._LEARNED else result  # scores go into a softmax in fp32


def _added_in_fp16(left: Tensor, right: Tensor) -> Tensor:
    """A product whose sum is rounded to fp16 each time that a tensor core has added its part to it."""
    total = left.new_zeros(())
    for some, others in zip(left.split(TENSOR_CORE_DEPTH, -1), right.split(TENSOR_CORE_DEPTH, -2), strict=True):
        total = _to_fp16_and_back(total + some @ others)
    return total


def _to_fp16_and_back(tensor: Tensor) -> Tensor:
    return tensor.half().float()


def _key(case: Case, metadata: Metadata, seed: int) -> tuple[Any, ...]:
    """All that the images depend on beside the checkpoint."""
    return case, metadata.input, metadata.pixel_mask, seed
