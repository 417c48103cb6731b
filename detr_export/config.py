"""`DetrConfig`: the document that describes a checkpoint's architecture.

It reads and writes the `config.json` of the Hugging Face hub, of DETR and of Table Transformer, in the forms of transformers
4 and 5. It has every field of transformers 4.57's class, with its name and default. Unknown fields are kept in `extra` and
written back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from detr_export.backbone_config import (
    RESNETS,
    ResNetConfig,
    TimmBackboneConfig,
    backbone_config_from_dict,
    field_names,
    plain,
    require_indices,
    require_timm_name,
    require_types,
    split_fields,
)
from detr_export.runtimes.documents import Count, Integer, NotNegative, Probability, Size, read_document, shown, typed
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.hub import settings_file
from detr_export.runtimes.limits import require_at_most

CONFIG_NAME = "config.json"
FUSED = "label_ids_to_fuse"  # in `extra`: the classes of stuff
# How a checkpoint is written. From 5 on, transformers describes every backbone in `backbone_config`, and has other parameter
# names, which it writes only when it is told to (save_original_format=False).
TRANSFORMERS4, TRANSFORMERS5, TRANSFORMERS5_NAMES = "transformers 4", "transformers 5", "transformers 5, its own names"

_MODEL_TYPES = {False: "detr", True: "table-transformer"}  # by pre_norm
# Names that transformers accepts for the same value.
_ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
# transformers writes these fields; here they are computed.
_DERIVED = ("model_type", "label2id", "num_labels", "num_hidden_layers")
# Only transformers 4 has these.
_REPLACED_IN_5 = ("use_timm_backbone", "backbone", "use_pretrained_backbone", "backbone_kwargs")
# These are not in config.json under that name.
_NOT_WRITTEN = ("pre_norm", "layout")
# Fields of transformers' base class. As in transformers, they are written only when they differ from the default.
_WRITTEN_WHEN_SET = ("output_attentions", "output_hidden_states", "return_dict")
_CHANNELS = ("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "num_channels")
_LARGEST_RESNET = 64_000_000  # parameters; resnet152 has 58 million
_RESNET_CHANNELS = 2048  # of its last feature map, at most


class _Classes(TypedDict, total=False):
    """What `config.json` says of the classes; `label2id` is not used."""

    num_labels: Count | None
    id2label: dict[Any, str] | None
    label2id: dict[str, Any] | None


class _TimmOptions(TypedDict, total=False):
    """What `backbone_kwargs` may ask timm for. It takes much more, such as the path of a file to load."""

    out_indices: tuple[Integer, ...]
    in_chans: Count
    output_stride: Count
    drop_rate: Probability
    drop_path_rate: Probability


@dataclass(frozen=True)
class DetrConfig:
    """Architecture, labels and loss weights of a DETR; the fields are those of transformers 4.57's `DetrConfig`, and:

    - `pre_norm`: layers normalise the input of their branches, and a norm ends the encoder. On the hub this is the model
      type `table-transformer`, and in facebookresearch/detr the option `--pre_norm`.
    - `layout`: how the checkpoint was written, and will be.
    """

    use_timm_backbone: bool = True  # timm's parameter names; False means transformers' own ResNet ("no_timm")
    # A ResNetConfig is a no_timm backbone. A TimmBackboneConfig has the say over backbone, num_channels and dilation.
    backbone_config: ResNetConfig | TimmBackboneConfig | None = None
    num_channels: Count = 3
    num_queries: Count = 100
    encoder_layers: Size = 6
    encoder_ffn_dim: Count = 2048
    encoder_attention_heads: Count = 8
    decoder_layers: Count = 6
    decoder_ffn_dim: Count = 2048
    decoder_attention_heads: Count = 8
    encoder_layerdrop: Probability = 0.0
    decoder_layerdrop: Probability = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: Count = 256
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    init_std: NotNegative = 0.02
    init_xavier_std: NotNegative = 1.0
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"  # or "learned"
    backbone: str | None = "resnet50"  # timm's name
    use_pretrained_backbone: bool | None = True  # for a model that is made from a configuration alone
    backbone_kwargs: Mapping[str, Any] | None = None  # out_indices, in_chans, output_stride
    dilation: bool | None = False  # DC5: the last stage keeps its resolution
    class_cost: NotNegative = 1
    bbox_cost: NotNegative = 5
    giou_cost: NotNegative = 2
    mask_loss_coefficient: NotNegative = 1
    dice_loss_coefficient: NotNegative = 1
    bbox_loss_coefficient: NotNegative = 5
    giou_loss_coefficient: NotNegative = 2
    eos_coefficient: NotNegative = 0.1
    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    pre_norm: bool = False
    layout: str = TRANSFORMERS4
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields this class does not know
    _commit_hash: ClassVar[None] = None  # transformers' pipelines ask for it

    def __post_init__(self) -> None:
        require_types(self)
        self._require_limits()
        _require_labels(self.id2label)
        if FUSED in self.extra:
            fused = typed(dict(self.extra), _Fused, "", CheckpointError)[FUSED]  # type: ignore[literal-required]
            strange = set(fused or ()) - set(self.id2label)
            if strange:
                raise CheckpointError(f"{FUSED} has {max(strange)}; expected ids of the {self.num_labels} classes")
        if self.position_embedding_type not in ("sine", "learned"):
            raise CheckpointError(
                f"position_embedding_type is {shown(self.position_embedding_type)}; expected 'sine' or 'learned'"
            )
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise CheckpointError(f"d_model {self.d_model} is not divisible by {side}_attention_heads {heads}")
        if self.d_model % 4:
            raise CheckpointError(f"d_model {self.d_model} is not divisible by 4, which position encoding needs")
        if not isinstance(self.backbone_config, (ResNetConfig, TimmBackboneConfig, type(None))):
            raise CheckpointError(f"backbone_config is {shown(self.backbone_config)}; expected an object or null")
        if self.backbone_kwargs is not None:
            _require_timm_options(self.backbone_kwargs)
        if isinstance(self.backbone_config, TimmBackboneConfig):
            self._adopt(self.backbone_config)
        elif not self.use_timm_backbone and self.backbone in (None, "resnet50"):
            object.__setattr__(self, "backbone", None)
            object.__setattr__(self, "dilation", None)
            if self.backbone_config is None:
                object.__setattr__(self, "backbone_config", ResNetConfig())
        elif not self.use_timm_backbone:
            raise CheckpointError(
                f"backbone {shown(self.backbone)} without timm is not supported; "
                "give a backbone_config of model type 'resnet'"
            )
        if self.use_timm_backbone:
            require_timm_name(self.backbone or "", "backbone")
        most = self.most_parameters
        require_at_most("checkpoint_bytes", 4 * most, "what the sizes of layers come to, in bytes,", CheckpointError)

    def _require_limits(self) -> None:
        for name in _CHANNELS:
            require_at_most("channels", getattr(self, name), name, CheckpointError)
        for name in ("encoder_layers", "decoder_layers"):
            require_at_most("layers", getattr(self, name), name, CheckpointError)
        require_at_most("queries", self.num_queries, "num_queries", CheckpointError)
        require_at_most("labels", len(self.id2label), "the number of labels", CheckpointError)

    def _adopt(self, backbone: TimmBackboneConfig) -> None:
        stride = backbone.output_stride
        adopted = {
            "use_timm_backbone": True,
            "backbone": backbone.backbone,
            "num_channels": backbone.num_channels,
            "use_pretrained_backbone": backbone.use_pretrained_backbone,
            "backbone_kwargs": None,
            "dilation": stride is not None and stride < 32,  # transformers 5 does not look at its own field
            "layout": TRANSFORMERS5 if self.layout == TRANSFORMERS4 else self.layout,
        }
        for name, value in adopted.items():
            object.__setattr__(self, name, value)

    @property
    def timm_options(self) -> dict[str, Any]:
        """What timm is asked for besides the backbone's name: `out_indices`, `in_chans`, `output_stride` and others."""
        if isinstance(self.backbone_config, TimmBackboneConfig):
            return self.backbone_config.options
        stride = {"output_stride": 16} if self.dilation else {}
        return {"out_indices": (1, 2, 3, 4), "in_chans": self.num_channels, **stride, **(self.backbone_kwargs or {})}

    @property
    def is_known_resnet(self) -> bool:
        """Whether the backbone is a ResNet whose parameters this project knows, not another architecture of timm."""
        return not self.use_timm_backbone or (self.backbone or "").partition(".")[0] in RESNETS

    @property
    def most_parameters(self) -> int:
        """How many numbers the model has at most, mask head included. Any backbone of timm counts as its largest ResNet."""
        own = self.backbone_config if isinstance(self.backbone_config, ResNetConfig) else None
        backbone = _LARGEST_RESNET + 50 * 64 * self.num_channels if own is None else own.most_parameters
        channels = _RESNET_CHANNELS if own is None else max(own.embedding_size, *own.hidden_sizes)
        width, wider = self.d_model, self.d_model + self.encoder_attention_heads
        encoder = self.encoder_layers * (4 * width + 2 * self.encoder_ffn_dim + 16) * (width + 1)
        decoder = self.decoder_layers * (8 * width + 2 * self.decoder_ffn_dim + 24) * (width + 1)
        # Queries, heads, projections and learned positions are rows of that width.
        rows = self.num_queries + self.num_labels + 4 * channels + 4 * width + 200
        return backbone + encoder + decoder + rows * (width + 1) + 9 * wider * (wider + width) + 20 * wider

    @property
    def num_labels(self) -> int:
        """Number of classes, without "no object"."""
        return len(self.id2label)

    @property
    def model_type(self) -> str:
        """`detr` or `table-transformer`."""
        return _MODEL_TYPES[self.pre_norm]

    @property
    def hidden_size(self) -> int:
        """`d_model`, as other configurations of transformers call it; so are the two below."""
        return self.d_model

    @property
    def num_attention_heads(self) -> int:
        """`encoder_attention_heads`."""
        return self.encoder_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """`encoder_layers`."""
        return self.encoder_layers

    @property
    def output_stride(self) -> int:
        """How many pixels of the image one position of the transformer covers in each direction: 32, or 16 with DC5."""
        if isinstance(self.backbone_config, ResNetConfig):
            first = 2 if self.backbone_config.downsample_in_first_stage else 1
            last = self.backbone_config.stage_names.index(self.backbone_config.outputs[-1])
            return 4 if last == 0 else 4 * first * 2 ** (last - 1)
        options = self.timm_options
        coarsest = max(index % 5 for index in options["out_indices"])  # of the five feature maps; -1 is the last
        return min(int(options.get("output_stride", 32)), 2 ** (coarsest + 1))

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
        if model_type not in _MODEL_TYPES.values():
            raise CheckpointError(
                f"model_type is {shown(model_type)}; expected 'detr' (facebook/detr-resnet-50 and family) or "
                "'table-transformer'"
            )
        values["pre_norm"] = model_type == _MODEL_TYPES[True]

        # Labels: their names, or only how many there are.
        classes = {name: values.get(name) for name in _Classes.__annotations__}
        for name in (*_DERIVED, "id2label"):
            values.pop(name, None)
        named = _named_labels(**classes)
        if named is not None:
            values["id2label"] = named

        # The backbone's own document, then the plain fields.
        backbone = values.pop("backbone_config", None)
        values.pop("layout", None)
        if isinstance(backbone, Mapping):
            values["backbone_config"] = backbone_config_from_dict(backbone)
            if "use_timm_backbone" not in values:
                values.update(layout=TRANSFORMERS5, use_timm_backbone=False)
        elif backbone is not None:
            raise CheckpointError(f"backbone_config is {shown(backbone)}; expected an object or null")
        known, extra = split_fields(cls, values)
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads; `from_dict` is its inverse."""
        result = {name: plain(getattr(self, name)) for name in field_names(type(self)) if name not in _NOT_WRITTEN}
        omitted = _WRITTEN_WHEN_SET if self.layout != TRANSFORMERS4 else (*_WRITTEN_WHEN_SET, "is_encoder_decoder")
        for name in omitted:
            if result[name] == type(self).__dataclass_fields__[name].default:
                del result[name]
        if self.layout != TRANSFORMERS4:
            for name in _REPLACED_IN_5:
                del result[name]
        elif self.backbone_kwargs is None:
            # transformers 4 fills it in. With it, transformers 5 asks the hub for the backbone.
            del result["backbone_kwargs"]
        result["backbone_config"] = self.backbone_config.to_dict() if self.backbone_config else None
        result["id2label"] = {str(index): name for index, name in self.id2label.items()}
        result.update(model_type=self.model_type, label2id=self.label2id, num_hidden_layers=self.encoder_layers)
        return {**self.extra, **result}

    def with_classes(
        self,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        num_labels: int | None = None,
    ) -> DetrConfig:
        """The configuration with other classes; unchanged where all arguments are None.

        Args:
            id2label: names of the classes by their ids.
            label2id: ids by their names, which `id2label` says already; it is only checked.
            num_labels: how many classes there are. Without `id2label` they are named `LABEL_0` and so on, unless there are
                as many already.

        Raises:
            CheckpointError: the arguments contradict each other.
        """
        made = _named_labels(num_labels, id2label, label2id)
        labels = None if id2label is None else made
        if label2id is not None:
            known = self.id2label if labels is None else labels
            if any(known.get(index) != name for name, index in label2id.items()) or {*known.values()} - {*label2id}:
                raise CheckpointError("label2id is not the inverse of id2label; leave it out, or give both")
        if num_labels is not None and labels is None:
            labels = made if num_labels != self.num_labels else None
        elif labels is not None and num_labels not in (None, len(labels)):
            raise CheckpointError(
                f"num_labels is {num_labels}, and id2label has {len(labels)} classes; leave num_labels out"
            )
        if labels is None:
            return self
        # Which classes a panoptic map joins goes with the ids.
        extra = {name: value for name, value in self.extra.items() if name != FUSED or labels == self.id2label}
        return replace(self, id2label=labels, extra=extra)

    @classmethod
    def from_pretrained(cls, path: str | Path, revision: str | None = None, **changes: Any) -> DetrConfig:
        """Reads `config.json`.

        Args:
            path: that file, its directory, or a hub id.
            revision: a branch, tag or commit on the hub.
            changes: fields to change, and `num_labels` and `label2id`, see `with_classes`.

        Raises:
            CheckpointError: the file is missing, is not JSON, or does not describe a DETR; or there is no such field.
        """
        classes = {name: changes.pop(name, None) for name in ("id2label", "label2id", "num_labels")}
        unknown = set(changes) - set(field_names(cls))
        if unknown:
            raise CheckpointError(f"a DetrConfig has no {', '.join(sorted(unknown))}; its fields are those of transformers'")
        file = settings_file(path, CONFIG_NAME, revision, CheckpointError)
        return replace(cls._read(file).with_classes(**classes), **changes)

    @classmethod
    def _read(cls, file: Path) -> DetrConfig:
        try:
            values = read_document(file, CheckpointError)
        except FileNotFoundError:
            raise CheckpointError(f"{file} does not exist; a checkpoint directory needs its {CONFIG_NAME}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} is {shown(values)}; expected an object")
        try:
            return cls.from_dict(values)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def save_pretrained(self, directory: str | Path) -> Path:
        """Writes `config.json` into `directory`, which is made if it is missing, and returns the file's path."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        return write_atomically(Path(directory) / CONFIG_NAME, text.encode())


_Fused = TypedDict("_Fused", {FUSED: list[Size] | None}, total=False)  # type: ignore[misc]


def _named_labels(num_labels: Any, id2label: Any, label2id: Any) -> dict[int, str] | None:
    """Names of classes by their ids, from what a document or a caller says of them; None if that is nothing.

    Raises:
        CheckpointError: an id is no integer written as usual, a name is not text, or there are too many.
    """
    given = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
    typed(given, _Classes, "", CheckpointError)
    if id2label is None:
        if num_labels is None:
            return None
        require_at_most("labels", num_labels, "num_labels", CheckpointError)
        return {index: f"LABEL_{index}" for index in range(num_labels)}
    require_at_most("labels", len(id2label), "the number of labels", CheckpointError)
    labels: dict[int, str] = {}
    for key, name in id2label.items():
        index = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 else key
        if isinstance(index, bool) or not isinstance(index, int) or str(index) != str(key):
            raise CheckpointError(f"id2label has the id {shown(key)}; expected an integer, such as '0'")
        if index in labels:
            raise CheckpointError(f"id2label has the id {index} twice")
        labels[index] = name
    return labels


def _require_labels(labels: Mapping[int, str]) -> None:
    """Refuses ids that cannot be columns of a classifier's output.

    Fine-tunes exist whose ids begin at 1, so there may be gaps; a class without a name is called by its number.
    """
    if not labels:
        raise CheckpointError("id2label has no classes; expected at least one")
    wrong = next((index for index in labels if index < 0), None)
    if wrong is not None:
        raise CheckpointError(f"id2label has the id {shown(wrong)}; expected 0 or more")
    require_at_most("labels", max(labels), "the largest id of id2label", CheckpointError)


def _require_timm_options(options: Mapping[str, Any]) -> None:
    known = _TimmOptions.__annotations__
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise CheckpointError(f"backbone_kwargs has {shown(unknown)}; expected some of {', '.join(known)}")
    typed(dict(options), _TimmOptions, "backbone_kwargs", CheckpointError)
    require_indices(options.get("out_indices"), "backbone_kwargs")
    require_at_most("channels", options.get("in_chans", 1), "backbone_kwargs: in_chans", CheckpointError)
