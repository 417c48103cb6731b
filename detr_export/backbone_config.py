"""The documents that describe a backbone inside a checkpoint's `config.json`.

They read and write the `backbone_config` of transformers 4 and 5. They have every field of its classes that matters here,
with its name and default. Unknown fields are kept in `extra` and written back unchanged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, cast, get_type_hints

from detr_export.runtimes.documents import Count, Integer, shown, typed
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.limits import require_at_most

# name: (bottleneck blocks, blocks in each of the four stages); table 1 of He et al. 2016
RESNETS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}

# An architecture of timm, and perhaps its training recipe: resnet50.a1_in1k. timm also takes names with a scheme or a slash,
# and would fetch a model from the hub or open a folder of this machine for them.
_TIMM_NAME = re.compile(r"[A-Za-z0-9]\w{0,79}(\.\w{1,79})?", re.ASCII)
_FEATURE_MAPS = 64  # that a backbone returns, at most


_BACKBONE = "backbone_config"
_BOTTLENECK = 4  # how many times fewer channels the middle of a bottleneck has


class _Indices(TypedDict):
    out_indices: tuple[Integer, ...] | None


@dataclass(frozen=True)
class ResNetConfig:
    """The `backbone_config` of model type `resnet`: the backbone of a `no_timm` checkpoint."""

    num_channels: Count = 3
    embedding_size: Count = 64  # channels after the stem
    hidden_sizes: tuple[Count, ...] = (256, 512, 1024, 2048)  # channels after each stage
    depths: tuple[Count, ...] = (3, 4, 6, 3)  # residual layers in each stage
    layer_type: str = "bottleneck"  # or "basic"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False  # stride in the first 1x1 convolution instead of the 3x3
    out_features: tuple[str, ...] | None = None  # names of stages, or "stem"; the last stage when None
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know

    def __post_init__(self) -> None:
        require_types(self, _BACKBONE)
        if self.layer_type not in ("basic", "bottleneck"):
            raise CheckpointError(f"backbone layer_type is {shown(self.layer_type)}; expected 'basic' or 'bottleneck'")
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise CheckpointError(
                f"backbone hidden_sizes and depths must be equally long, and not empty; they have {len(self.hidden_sizes)} "
                f"and {len(self.depths)} entries"
            )
        require_at_most("layers", sum(self.depths), f"{_BACKBONE}: the sum of depths", CheckpointError)
        for name in ("num_channels", "embedding_size"):
            require_at_most("channels", getattr(self, name), f"{_BACKBONE}: {name}", CheckpointError)
        for index, size in enumerate(self.hidden_sizes):
            require_at_most("channels", size, f"{_BACKBONE}: hidden_sizes[{index}]", CheckpointError)
        if self.layer_type == "bottleneck" and min(self.hidden_sizes) < _BOTTLENECK:
            raise CheckpointError(
                f"backbone hidden_sizes has {min(self.hidden_sizes)}; expected at least {_BOTTLENECK} with bottleneck layers"
            )
        unknown = set(self.out_features or ()) - set(self.stage_names)
        if unknown:
            raise CheckpointError(
                f"backbone out_features has {shown(min(unknown))}; expected 'stem' or 'stage1' to 'stage{len(self.depths)}'"
            )

    @property
    def most_parameters(self) -> int:
        """How many numbers the backbone has, at most."""
        total, before = 50 * self.num_channels * self.embedding_size, self.embedding_size
        for size, depth in zip(self.hidden_sizes, self.depths, strict=True):
            basic = self.layer_type == "basic"
            total += 10 * before * size + depth * (18 * size * size if basic else 2 * size * size) + 20 * depth * size
            before = size
        return total

    @property
    def stage_names(self) -> tuple[str, ...]:
        """`("stem", "stage1", ...)`."""
        return ("stem", *(f"stage{index + 1}" for index in range(len(self.depths))))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the stages whose feature maps the backbone returns, in the order of the stages."""
        wanted = self.out_features or (self.stage_names[-1],)
        return tuple(name for name in self.stage_names if name in wanted)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResNetConfig:
        """Reads the dictionary that transformers writes under `backbone_config`.

        Raises:
            CheckpointError: a field has a value that no backbone can have.
        """
        values = dict(values)
        values.pop("model_type", None)
        values.pop("stage_names", None)
        indices = require_indices(values.pop("out_indices", None), _BACKBONE)
        known, extra = split_fields(cls, values)
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        config = cls(**known, extra=extra)
        if config.out_features is not None or indices is None:
            return config
        names = config.stage_names
        if not all(-len(names) <= index < len(names) for index in indices):
            raise CheckpointError(f"backbone out_indices {list(indices)} do not fit {len(names)} stages")
        return replace(config, out_features=tuple(names[index] for index in indices))

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads."""
        result = {name: plain(getattr(self, name)) for name in field_names(type(self))}
        names = list(self.stage_names)
        result.update(
            model_type="resnet",
            stage_names=names,
            out_features=list(self.outputs),
            out_indices=[names.index(name) for name in self.outputs],
        )
        return {**self.extra, **result}


@dataclass(frozen=True)
class TimmBackboneConfig:
    """The `backbone_config` of model type `timm_backbone`: what transformers 5 says of a backbone with timm's names."""

    backbone: str = "resnet50"  # timm's name
    num_channels: Count = 3
    out_indices: tuple[Integer, ...] = (-1,)  # which feature maps it returns; 0 is the first, -1 the last
    output_stride: Count | None = None  # 16 for DC5; timm's own, mostly 32, when None
    use_pretrained_backbone: bool | None = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know

    def __post_init__(self) -> None:
        require_types(self, _BACKBONE)
        require_timm_name(self.backbone, f"{_BACKBONE}: backbone")
        require_indices(self.out_indices, _BACKBONE)
        require_at_most("channels", self.num_channels, f"{_BACKBONE}: num_channels", CheckpointError)

    @property
    def options(self) -> dict[str, Any]:
        """What timm is asked for."""
        stride = {} if self.output_stride is None else {"output_stride": self.output_stride}
        return {"out_indices": self.out_indices, "in_chans": self.num_channels, **stride}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TimmBackboneConfig:
        """Reads the dictionary that transformers writes under `backbone_config`."""
        values = {name: value for name, value in values.items() if name != "model_type"}
        known, extra = split_fields(cls, values)
        if extra.get("features_only") is False:
            raise CheckpointError("backbone_config has features_only false; DETR needs the backbone's feature maps")
        indices = require_indices(known.pop("out_indices", None), _BACKBONE)
        if indices is not None:
            known["out_indices"] = indices
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads."""
        own = {name: plain(getattr(self, name)) for name in field_names(type(self))}
        return {"features_only": True, **self.extra, **own, "model_type": "timm_backbone"}


def backbone_config_from_dict(values: Mapping[str, Any]) -> ResNetConfig | TimmBackboneConfig:
    """Reads a `backbone_config` of either model type.

    Raises:
        CheckpointError: it is of another model type, or a field has a value that no backbone can have.
    """
    kinds: dict[Any, type[ResNetConfig] | type[TimmBackboneConfig]] = {
        "resnet": ResNetConfig,
        "timm_backbone": TimmBackboneConfig,
    }
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in kinds:
        raise CheckpointError(
            f"backbone_config has model_type {shown(model_type)}; expected {' or '.join(map(repr, kinds))}"
        )
    return kinds[model_type].from_dict(values)


def require_types(config: Any, where: str = "") -> None:
    """Refuses a configuration class's fields that have another type or range than the class says.

    `extra` and the field `backbone_config` are not looked at.

    Raises:
        CheckpointError: names the field, what it is, and what was expected.
    """
    cls: Any = type(config)
    typed({name: getattr(config, name) for name in field_names(cls)}, _schema(cls), where, CheckpointError)


@functools.cache
def _schema(cls: Any) -> Any:
    hints, make = get_type_hints(cls, include_extras=True), cast(Any, TypedDict)
    return make(cls.__name__, {name: hints[name] for name in field_names(cls) if name != _BACKBONE})


def require_indices(value: Any, where: str) -> tuple[int, ...] | None:
    """`out_indices` as a tuple of integers, None for null.

    Raises:
        CheckpointError: it is something else, or has no entry.
    """
    indices = typed({"out_indices": value}, _Indices, where, CheckpointError)["out_indices"]
    if indices is not None and not 1 <= len(indices) <= _FEATURE_MAPS:
        raise CheckpointError(f"{where}: out_indices has {len(indices)} entries; expected 1 to {_FEATURE_MAPS}")
    return indices


def require_timm_name(name: str, where: str) -> None:
    """Refuses a name that timm would take to the hub or to a folder, instead of to an architecture of its own.

    Raises:
        CheckpointError: it is one.
    """
    if not _TIMM_NAME.fullmatch(name):
        raise CheckpointError(f"{where} is {shown(name)}; expected the name of an architecture of timm, such as resnet50")


def field_names(cls: type) -> list[str]:
    """Fields of a configuration class, without `extra`."""
    return [item.name for item in fields(cls) if item.name != "extra"]


def split_fields(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of fields that a configuration class has, and the others."""
    names = set(field_names(cls))
    known = {name: value for name, value in values.items() if name in names}
    return known, {name: value for name, value in values.items() if name not in names}


def plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
