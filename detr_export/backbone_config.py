"""The documents that describe a backbone inside a checkpoint's `config.json`.

They read and write the `backbone_config` of transformers 4 and 5. They have every field of its classes that matters here,
with its name and default. Unknown fields are kept in `extra` and written back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from detr_export.runtimes.errors import CheckpointError

# name: (bottleneck blocks, blocks in each of the four stages); table 1 of He et al. 2016
RESNETS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class ResNetConfig:
    """The `backbone_config` of model type `resnet`: the backbone of a `no_timm` checkpoint."""

    num_channels: int = 3
    embedding_size: int = 64  # channels after the stem
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)  # channels after each stage
    depths: tuple[int, ...] = (3, 4, 6, 3)  # residual layers in each stage
    layer_type: str = "bottleneck"  # or "basic"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False  # stride in the first 1x1 convolution instead of the 3x3
    out_features: tuple[str, ...] | None = None  # names of stages, or "stem"; the last stage when None
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know

    def __post_init__(self) -> None:
        if self.layer_type not in ("basic", "bottleneck"):
            raise CheckpointError(f"backbone layer_type is {self.layer_type!r}; expected 'basic' or 'bottleneck'")
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise CheckpointError(
                f"backbone hidden_sizes {list(self.hidden_sizes)} and depths {list(self.depths)} must be equally long"
            )
        unknown = set(self.out_features or ()) - set(self.stage_names)
        if unknown:
            raise CheckpointError(f"backbone out_features {sorted(unknown)} are not among {list(self.stage_names)}")

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
        """Reads the dictionary that transformers writes under `backbone_config`."""
        values = dict(values)
        values.pop("model_type", None)
        values.pop("stage_names", None)
        indices = values.pop("out_indices", None)
        known, extra = split_fields(cls, values)
        for name in ("hidden_sizes", "depths"):
            if name in known:
                known[name] = tuple(known[name])
        names = ("stem", *(f"stage{index + 1}" for index in range(len(known.get("depths", cls.depths)))))
        if known.get("out_features") is not None:
            known["out_features"] = tuple(known["out_features"])
        elif indices is not None:
            try:
                known["out_features"] = tuple(names[index] for index in indices)
            except IndexError:
                raise CheckpointError(f"backbone out_indices {list(indices)} do not fit {len(names)} stages") from None
        return cls(**known, extra=extra)

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
    num_channels: int = 3
    out_indices: tuple[int, ...] = (-1,)  # which feature maps it returns; 0 is the first, -1 the last
    output_stride: int | None = None  # 16 for DC5; timm's own, mostly 32, when None
    use_pretrained_backbone: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know

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
        indices = known.pop("out_indices", None)
        if indices is not None:
            known["out_indices"] = tuple(indices)
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
    if model_type not in kinds:
        raise CheckpointError(f"backbone_config has model_type {model_type!r}; expected {' or '.join(map(repr, kinds))}")
    return kinds[model_type].from_dict(values)


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
