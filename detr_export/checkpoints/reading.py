"""Reading a checkpoint: a directory, a hub id, or an original `.pth` file becomes a `Checkpoint`.

Nothing here unpickles arbitrary objects: `torch.load` runs with `weights_only=True`. Besides tensors it allows one class,
`argparse.Namespace`, which the original training script stores.

Before a weight is read, what the files say of themselves is compared with the limits and the configuration. Until then the
weights stay on the disk, also when they are opened.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detr_export.checkpoints import original as original_checkpoint
from detr_export.checkpoints.containers import is_archive, safetensors_shapes
from detr_export.checkpoints.hub import WEIGHT_FILES, download
from detr_export.checkpoints.layouts import has_names_of_5, to_hub_names
from detr_export.checkpoints.processors import read_processor, require_backend
from detr_export.checkpoints.tensors import is_counter, named, require_plain, require_room, shapes_of
from detr_export.config import CONFIG_NAME, TRANSFORMERS5_NAMES, DetrConfig
from detr_export.runtimes.documents import read_document, shown, typed
from detr_export.runtimes.errors import CheckpointError, first_line
from detr_export.runtimes.files import require_regular, sha256_of_files, user_path
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.opening import ENGINE_SUFFIXES
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

# The trained checkpoints in this package: a panoptic DETR, a Table Transformer. A folder of that name is given as ./demo.
DEMO, DEMO_TABLES = "demo", "demo-tables"
_PACKAGE = Path(__file__).parents[1]
PACKAGED = {DEMO: _PACKAGE / "demo_checkpoint", DEMO_TABLES: _PACKAGE / "demo_tables_checkpoint"}

_LFS_HEADER = b"version https://git-lfs"
# How torch's messages name what it refuses to unpickle: an object of another class, or a program.
_FOREIGN = re.compile("GLOBAL|Unsupported class|TorchScript")
_LISTED = 8  # names in an error message before "and N more"


@dataclass
class _Index:
    """The document that says which weight file has which tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    source: str  # the name that the caller gave
    config: DetrConfig
    state_dict: Mapping[str, Tensor]  # with the hub's names; floating point tensors are float32
    processor: DetrImageProcessor
    sha256: str  # of the weight files as they lie on disk

    @property
    def task(self) -> str:
        """`segmentation` when there is a mask head, else `detection`."""
        return "segmentation" if any(name.startswith("mask_head.") for name in self.state_dict) else "detection"


def load_checkpoint(
    source: str | Path, dilation: bool | None = None, revision: str | None = None, processor: str | None = None
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        source: a directory with `config.json` and weights, a `.pth` file of facebookresearch/detr, or a hub id such as
            `facebook/detr-resnet-50`. What exists on disk is never looked for on the hub. The names `demo` and `demo-tables`
            always mean the small checkpoints in this package, whatever lies on disk.
        dilation: for `.pth` files, whether it is a DC5 model; refused for others, whose configuration says it.
        revision: for hub ids, a branch, tag or commit.
        processor: for directories and hub ids, whose pixels to take: `pil` or `torchvision`. None takes what the files
            name, or what transformers would take, see `checkpoints.processors`.

    Raises:
        CheckpointError: it is missing, damaged, or not a DETR; the message says which file and why.
    """
    require_backend(processor)
    if source in PACKAGED:
        given = any(option is not None for option in (dilation, revision, processor))
        _refuse(given, f"{source} comes with the package; leave the other options out")
        return _load_directory(PACKAGED[str(source)], str(source))
    path = user_path(source)
    if os.path.isfile(path):  # of a name that is too long this is false, where `Path.is_file` raises
        _refuse(revision is not None, f"{path} is a file; --revision goes with a hub id")
        _refuse(processor is not None, f"{path} was trained on Pillow's pixels; leave --processor out")
        return _load_original(path, str(source), dilation)
    _refuse(dilation is not None, f"--dilation goes with an original .pth file; {source}'s {CONFIG_NAME} says it")
    if os.path.isdir(path):
        _refuse(revision is not None, f"{path} is a directory; --revision goes with a hub id")
        return _load_directory(path, str(source), processor)
    _refuse(os.path.exists(path), f"{path} is not a regular file; expected a directory, a .pth file or a hub id")
    return _load_directory(download(str(source), revision), str(source), processor)


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copies parameters into `model`; every name and shape must fit.

    Raises:
        CheckpointError: lists what is missing, what is unexpected, and what has another shape.
    """
    require_fit(model, state_dict, source)
    model.load_state_dict({name: value for name, value in state_dict.items() if not is_counter(name)})


def require_fit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str, shapes: bool = True) -> None:
    """Compares parameters with those of `model` by name, shape and kind of number. The model may be on the device `meta`.

    Args:
        model: that they are for.
        state_dict: the parameters.
        source: the checkpoint's name, for messages.
        shapes: whether they must have the same shapes.

    Raises:
        CheckpointError: lists what is missing, what is unexpected, and what has another shape.
    """
    expected = model.state_dict()
    given = {name: value for name, value in state_dict.items() if not is_counter(name)}
    problems = [
        _list("missing", (f"{name} {list(expected[name].shape)}" for name in expected if name not in given)),
        _list("unexpected", (f"{named(name)} {list(given[name].shape)}" for name in given if name not in expected)),
        _list(
            "of another shape",
            (
                f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
                for name, value in expected.items()
                if shapes and name in given and given[name].shape != value.shape
            ),
        ),
        _list(
            "not floating point",
            (f"{name} {given[name].dtype}" for name in expected if name in given and not given[name].is_floating_point()),
        ),
    ]
    if any(problems):
        raise CheckpointError(f"{source}: parameters do not fit the configuration; {'; '.join(filter(None, problems))}")


def read_weights(files: Sequence[Path], config: DetrConfig | None = None) -> dict[str, Tensor]:
    """Reads and merges weight files; floating point tensors become float32.

    Args:
        files: which ones.
        config: of the model that they are for, which limits how much is read.

    Raises:
        CheckpointError: a file is missing, a Git-LFS pointer, truncated, or holds NaN or infinite values; it has more than
            the configuration implies, or a tensor is in two of them.
    """
    source = ", ".join(file.name for file in files[:_LISTED])
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        _refuse_lfs_pointer(file)
        if file.suffix == ".safetensors":
            _join(shapes, safetensors_shapes(file), file)
    require_room(shapes, source, config)
    merged: dict[str, Tensor] = {}
    for file in files:
        _join(merged, _as_state_dict(_read_file(file), file), file)
    require_room(shapes_of(merged), source, config)
    return _checked(merged, source)


def sha256_of_directory(directory: Path) -> str:
    """`Checkpoint.sha256` of a directory, without reading the weights.

    Raises:
        CheckpointError: it holds no weights.
    """
    return sha256_of_files(_weight_files(directory))


def _load_directory(directory: Path, source: str, backend: str | None = None) -> Checkpoint:
    config = DetrConfig.from_pretrained(directory)
    files = _weight_files(directory)
    stored = read_weights(files, config)
    if has_names_of_5(stored):
        config = replace(config, layout=TRANSFORMERS5_NAMES)
    state_dict = to_hub_names(stored)
    _refuse(len(state_dict) < len(stored), f"{source} has parameters with two names, of transformers 4 and 5; expected one")
    processor = read_processor(directory, config, backend)
    return Checkpoint(source, config, state_dict, processor, sha256_of_files(files))


def _load_original(file: Path, source: str, dilation: bool | None) -> Checkpoint:
    if file.suffix in (".onnx", *ENGINE_SUFFIXES):
        raise CheckpointError(f"{file} is an exported file; expected a checkpoint directory, a hub id or a .pth file")
    if file.suffix in (".safetensors", ".json", ".bin"):
        raise CheckpointError(f"{file} is one file of a checkpoint; give the directory that holds it and its {CONFIG_NAME}")
    content = _read_file(file)
    try:
        raw, args = original_checkpoint.split_file(content)
        require_plain(raw, "its state dict")
        require_room(shapes_of(raw), "its state dict")
        if not original_checkpoint.is_original(raw):
            raise CheckpointError(
                "the parameter names are not those of facebookresearch/detr; "
                f"give a checkpoint in the hub's format as the directory that holds it and its {CONFIG_NAME}"
            )
        config, state_dict = original_checkpoint.convert(raw, args, dilation)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    processor = original_checkpoint.processor_of(config)
    return Checkpoint(source, config, _checked(state_dict, file.name), processor, sha256_of_files([file]))


def _weight_files(directory: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        file = directory / name
        if os.path.lexists(file):
            require_regular(file, CheckpointError)
            return _shards(file) if name.endswith(".index.json") else [file]
    raise CheckpointError(f"{directory} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")


def _shards(index: Path) -> list[Path]:
    _refuse_lfs_pointer(index)
    what = f"{index} is not an index of weight files"
    try:
        document = read_document(index, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    weight_map = typed(document, _Index, what, CheckpointError).weight_map
    _refuse(not weight_map, f"{what}: weight_map is empty")
    require_at_most("tensors", len(weight_map), f"the number of tensors of {index}", CheckpointError)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.isprintable() or set(name) & set("\\:") or name in ("", ".", ".."):
            raise CheckpointError(f"{index} names the file {shown(name)}; expected names inside its own directory")
        file = index.parent / name
        if not os.path.lexists(file):
            raise CheckpointError(f"{index} names the file {named(name)}, which is missing")
        require_regular(file, CheckpointError)
    return [index.parent / name for name in names]


def _read_file(file: Path) -> object:
    _refuse_lfs_pointer(file)
    if file.suffix == ".safetensors":
        require_room(safetensors_shapes(file), str(file))
    archive = file.suffix != ".safetensors" and is_archive(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([*original_checkpoint.SAFE_GLOBALS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its notes on other pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file: {first_line(error)}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        # torch's message offers to load the file unsafely; it is not passed on.
        if _FOREIGN.search(str(error)):
            raise CheckpointError(
                f"{file} holds objects other than tensors and was not loaded; expected a state dict saved with torch.save"
            ) from error
        raise CheckpointError(f"{file} is truncated or not a PyTorch file; copy or download it again") from error


def _refuse_lfs_pointer(file: Path) -> None:
    require_regular(file, CheckpointError)
    with file.open("rb") as stream:
        head = stream.read(len(_LFS_HEADER))
    _refuse(not head, f"{file} is empty")
    _refuse(head == _LFS_HEADER, f"{file} is a Git-LFS pointer, not the weights; run: git lfs pull")


def _as_state_dict(content: object, file: Path) -> Mapping[str, Tensor]:
    try:
        state_dict = original_checkpoint.split_file(content)[0]
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    require_plain(state_dict, str(file))
    return state_dict


def _join(merged: dict[str, Any], found: Mapping[str, Any], file: Path) -> None:
    twin = next((name for name in found if name in merged), None)
    _refuse(twin is not None, f"{file} has {named(str(twin))}, which another file has, too; expected each tensor once")
    merged.update(found)


def _checked(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    checked = {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
    broken = [key for key, value in checked.items() if value.is_floating_point() and not value.isfinite().all()]
    _refuse(bool(broken), f"{name} holds NaN or infinite values in {_list('parameters', map(named, broken))}")
    return checked


def _list(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{kind}: {', '.join(names[:_LISTED])}{more}"


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise CheckpointError(message)
