"""`DetrConfig` and `ResNetConfig`: the two documents that describe a checkpoint's architecture.

They read and write the `config.json` of the Hugging Face hub. They have every field of transformers 4.57's classes, with
its name and default. Unknown fields are kept in `extra` and written back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.files import write_atomically

CONFIG_NAME = "config.json"
# name: (bottleneck blocks, blocks in each of the four stages); table 1 of He et al. 2016
RESNETS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}

# Names that transformers accepts for the same value.
_ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
# transformers writes these fields; here they are computed.
_DERIVED = ("model_type", "label2id", "num_labels", "num_hidden_layers")
# Fields of transformers' base class. As in transformers, they are written only when they differ from the default.
_WRITTEN_WHEN_SET = ("output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder")


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
        known, extra = _split(cls, values)
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
        result = {name: _plain(getattr(self, name)) for name in _field_names(type(self))}
        names = list(self.stage_names)
        result.update(
            model_type="resnet",
            stage_names=names,
            out_features=list(self.outputs),
            out_indices=[names.index(name) for name in self.outputs],
        )
        return {**self.extra, **result}


@dataclass(frozen=True)
class DetrConfig:
    """Architecture, labels and loss weights of a DETR; the fields are those of transformers 4.57's `DetrConfig`."""

    use_timm_backbone: bool = True  # timm's parameter names; False means transformers' own ResNet ("no_timm")
    backbone_config: ResNetConfig | None = None  # only when use_timm_backbone is False
    num_channels: int = 3
    num_queries: int = 100
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"  # or "learned"
    backbone: str | None = "resnet50"  # timm's name
    use_pretrained_backbone: bool = True  # for a model that is made from a configuration alone
    backbone_kwargs: Mapping[str, Any] | None = None  # out_indices, in_chans, output_stride
    dilation: bool | None = False  # DC5: the last stage keeps its resolution
    class_cost: float = 1
    bbox_cost: float = 5
    giou_cost: float = 2
    mask_loss_coefficient: float = 1
    dice_loss_coefficient: float = 1
    bbox_loss_coefficient: float = 5
    giou_loss_coefficient: float = 2
    eos_coefficient: float = 0.1
    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know

    def __post_init__(self) -> None:
        if self.position_embedding_type not in ("sine", "learned"):
            raise CheckpointError(
                f"position_embedding_type is {self.position_embedding_type!r}; expected 'sine' or 'learned'"
            )
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if heads < 1 or self.d_model % heads:
                raise CheckpointError(f"d_model {self.d_model} is not divisible by {side}_attention_heads {heads}")
        if self.d_model % 4:
            raise CheckpointError(f"d_model {self.d_model} is not divisible by 4, which position encoding needs")
        if not self.use_timm_backbone and self.backbone in (None, "resnet50"):
            object.__setattr__(self, "backbone", None)
            object.__setattr__(self, "dilation", None)
            if self.backbone_config is None:
                object.__setattr__(self, "backbone_config", ResNetConfig())
        elif not self.use_timm_backbone:
            raise CheckpointError(
                f"backbone {self.backbone!r} without timm is not supported; give a backbone_config of model type 'resnet'"
            )

    @property
    def num_labels(self) -> int:
        """Number of classes, without "no object"."""
        return len(self.id2label)

    @property
    def output_stride(self) -> int:
        """How many pixels of the image one position of the transformer covers in each direction: 32, or 16 with DC5."""
        if self.backbone_config is not None:
            first = 2 if self.backbone_config.downsample_in_first_stage else 1
            last = self.backbone_config.stage_names.index(self.backbone_config.outputs[-1])
            return 4 if last == 0 else 4 * first * 2 ** (last - 1)
        options = self.backbone_kwargs or {}
        limit = int(options.get("output_stride", 16 if self.dilation else 32))
        return min(limit, 2 ** (max(options.get("out_indices", (4,))) + 1))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to id. Of several ids with one name (COCO's unused ids are all "N/A") it is the last."""
        return {name: index for index, name in self.id2label.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetrConfig:
        """Reads a parsed `config.json`.

        Raises:
            CheckpointError: it does not describe a DETR, or a field has a value that no DETR can have.
        """
        values = {_ALIASES.get(name, name): value for name, value in values.items()}
        model_type = values.get("model_type")
        if model_type != "detr":
            raise CheckpointError(f"model_type is {model_type!r}; expected 'detr' (facebook/detr-resnet-50 and family)")

        # Labels: their names, or only how many there are.
        num_labels = values.get("num_labels")
        for name in _DERIVED:
            values.pop(name, None)
        labels = values.pop("id2label", None)
        if labels is not None:
            values["id2label"] = {int(index): str(name) for index, name in labels.items()}
        elif num_labels is not None:
            values["id2label"] = {index: f"LABEL_{index}" for index in range(int(num_labels))}

        # The backbone of a no_timm checkpoint, then the plain fields.
        backbone = values.pop("backbone_config", None)
        if isinstance(backbone, Mapping):
            if backbone.get("model_type") != "resnet":
                raise CheckpointError(f"backbone_config has model_type {backbone.get('model_type')!r}; expected 'resnet'")
            values["backbone_config"] = ResNetConfig.from_dict(backbone)
        known, extra = _split(cls, values)
        try:
            return cls(**known, extra=extra)
        except TypeError as error:
            raise CheckpointError(f"{CONFIG_NAME} has a value of the wrong type: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads; `from_dict` is its inverse."""
        result = {name: _plain(getattr(self, name)) for name in _field_names(type(self))}
        for name in _WRITTEN_WHEN_SET:
            if result[name] == type(self).__dataclass_fields__[name].default:
                del result[name]
        if self.use_timm_backbone and self.backbone_kwargs is None:
            result["backbone_kwargs"] = {
                **({"output_stride": 16} if self.dilation else {}),
                "out_indices": [1, 2, 3, 4],
                "in_chans": self.num_channels,
            }
        result["backbone_config"] = self.backbone_config.to_dict() if self.backbone_config else None
        result["id2label"] = {str(index): name for index, name in self.id2label.items()}
        result.update(model_type="detr", label2id=self.label2id, num_hidden_layers=self.encoder_layers)
        return {**self.extra, **result}

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DetrConfig:
        """Reads `config.json`, given as the file or as its directory.

        Raises:
            CheckpointError: the file is missing, is not JSON, or does not describe a DETR.
        """
        file = Path(path)
        file = file / CONFIG_NAME if file.is_dir() else file
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{file} does not exist; a checkpoint directory needs its {CONFIG_NAME}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} holds a JSON {type(values).__name__}; expected an object")
        try:
            return cls.from_dict(values)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def save_pretrained(self, directory: str | Path) -> Path:
        """Writes `config.json` into `directory`, which is made if it is missing, and returns the file's path."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        return write_atomically(Path(directory) / CONFIG_NAME, text.encode())


def _field_names(cls: type) -> list[str]:
    return [item.name for item in fields(cls) if item.name != "extra"]


def _split(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = set(_field_names(cls))
    known = {name: value for name, value in values.items() if name in names}
    return known, {name: value for name, value in values.items() if name not in names}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
