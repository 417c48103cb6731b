"""What weight files say of themselves is compared with limits and configuration before memory is taken."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr_export.checkpoints.containers import is_archive, safetensors_shapes
from detr_export.checkpoints.reading import load_checkpoint, read_weights
from detr_export.checkpoints.tensors import require_room
from detr_export.loading import load_model
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes import limits
from detr_export.runtimes.errors import CheckpointError
from tests import models
from tests.detr_export.checkpoints.test_original import as_original, small

WEIGHTS, SETTINGS = "model.safetensors", ("config.json", "preprocessor_config.json")
HUGE = 10**12


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def refused(source: Path, message: str) -> None:
    """The checkpoint is refused, with this on its one line."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(load_checkpoint(source))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


# ---- the header of a safetensors file -----------------------------------------------------------------------------------


def container(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with that header, and perhaps another length than it has."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


TWO = {**entry(), "b": entry(offsets=(8, 16))["a"]}
NO = "is truncated or not a safetensors file: "
HEADERS: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b"\x01\x00", f"{NO}its header has 1 bytes, and the file 2"),
    (b"\xff" * 8, f"{NO}its header has an integer of 64 bits bytes, and the file 8"),
    (struct.pack("<Q", 2**40) + b"{}", f"{NO}its header has 1099511627776 bytes, and the file 10"),
    (container({}, length=3), f"{NO}its header has 3 bytes, and the file 10"),
    (container({}, length=0), "the header of .* is not JSON"),
    (container(b"[" * 100_000), "the header of .* is nested too deeply"),
    (container(b"{"), "the header of .* is not JSON"),
    (container(b"\xff\xff"), "the header of .* is not JSON"),
    (container(b'{"a": NaN}'), "the header of .* is not JSON"),
    (container([]), f"{NO}it is a list of 0; expected an object"),
    (container(None), f"{NO}it is null; expected an object"),
    (
        container({"a": []}),
        rf"{NO}\['a'\] is a list of 0; expected an object",
    ),
    (container({"a": {}}), f"{NO}.* lacks"),
    (container({"__metadata__": []}), f"{NO}__metadata__: it is a list of 0; expected an object"),
    (container({"__metadata__": {"format": 3}}), f"{NO}__metadata__: .*is 3; expected text"),
    (container(entry(dtype=3), b"\0" * 8), f"{NO}.*dtype is 3; expected text"),
    (container(entry(dtype="X32"), b"\0" * 8), f"{NO}a has dtype 'X32'; expected one of F64"),
    (container(entry(shape="2"), b"\0" * 8), f"{NO}.*shape is '2'; expected a list"),
    (container(entry(shape=[-2]), b"\0" * 8), rf"{NO}.*shape\[0\] is -2; expected an integer >= 0"),
    (container(entry(shape=[True, 2]), b"\0" * 8), rf"{NO}.*shape\[0\] is true; expected an integer"),
    (container(entry(shape=[2.0]), b"\0" * 8), rf"{NO}.*shape\[0\] is 2.0; expected an integer"),
    (container(entry(shape=[1] * 9 + [2]), b"\0" * 8), f"{NO}a has 10 dimensions; expected at most 8"),
    (container(entry(shape=[HUGE, HUGE]), b"\0" * 8), f"{NO}a has 8 bytes; expected those of F32"),
    (container(entry(shape=[2**62, 4]), b"\0" * 8), f"{NO}a has 8 bytes; expected those of F32"),
    (container(entry(shape=[3]), b"\0" * 8), rf"{NO}a has 8 bytes; expected those of F32 \[3\]"),
    (container(entry(offsets=[0]), b"\0" * 8), f"{NO}.*data_offsets is a list of 1; expected a list of length 2"),
    (container(entry(offsets=[-8, 0]), b"\0" * 8), rf"{NO}.*data_offsets\[0\] is -8; expected an integer >= 0"),
    (container(entry(offsets=[8, 0]), b"\0" * 8), rf"{NO}a has data_offsets\[0\] 8; expected 0"),
    (container(entry(offsets=[0, HUGE]), b"\0" * 8), f"{NO}a has {HUGE} bytes; expected those of F32"),
    (
        container(entry(shape=[HUGE // 4], offsets=[0, HUGE]), b"\0" * 8),
        f"{NO}its tensors have {HUGE} bytes .*, and 8 in",
    ),
    (container(entry(offsets=[4, 12]), b"\0" * 12), rf"{NO}a has data_offsets\[0\] 4; expected 0, where the one before it"),
    (container({**TWO, "b": entry()["a"]}, b"\0" * 8), rf"{NO}b has data_offsets\[0\] 0; expected 8"),
    (container({**TWO, "b": entry(offsets=[4, 12])["a"]}, b"\0" * 12), rf"{NO}b has data_offsets\[0\] 4; expected 8"),
    (container(TWO, b"\0" * 15), f"{NO}its tensors have 16 bytes by its header, and 15 in the file"),
    (container(TWO, b"\0" * 17), f"{NO}its tensors have 16 bytes by its header, and 17 in the file"),
    (container({"x" * 2000: entry()["a"]}, b"\0" * 8), "has 'xxx.*, a name of 2000 characters; expected at most 1000"),
]


@pytest.mark.parametrize(("content", "message"), HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_does_not_fit_its_file(content: bytes, message: str, copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(content)
    refused(copy, message)


def test_a_sound_header() -> None:
    file = Path(models.__file__).parents[1] / "detr_export" / "demo_checkpoint" / WEIGHTS
    shapes = safetensors_shapes(file)
    assert {name: tuple(shape) for name, shape in shapes.items()} == {
        name: tuple(value.shape) for name, value in load_file(file).items()
    }


# ---- the archive of torch.save ------------------------------------------------------------------------------------------


def archive(change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> bytes:
    """A file of torch.save whose members went through `change(old, new)`."""
    old, new = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, old)
    with zipfile.ZipFile(old) as given, zipfile.ZipFile(new, "w") as made:
        change(given, made)
    return new.getvalue()


def compressed(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)


def bomb(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        content = b"\0" * 10**8 if member.filename.endswith("data/0") else old.read(member)
        new.writestr(member.filename, content, zipfile.ZIP_DEFLATED if len(content) > 10**6 else zipfile.ZIP_STORED)


def without_data(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        if not member.filename.endswith("data/0"):
            new.writestr(member.filename, old.read(member))


def cut_data(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        new.writestr(member.filename, old.read(member)[:400] if member.filename.endswith("data/0") else old.read(member))


def large_pickle(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for member in old.infolist():
        new.writestr(
            member.filename, b"\x80\x02" + b"0" * 70_000_000 if member.filename.endswith("pkl") else old.read(member)
        )


def claiming(size: int) -> bytes:
    """An archive whose directory says that a member has another size."""
    content = bytearray(archive(lambda old, new: [new.writestr(m.filename, old.read(m)) for m in old.infolist()]))  # type: ignore[arg-type,return-value]
    at = content.find(b"PK\x01\x02")
    at = content.find(b"PK\x01\x02", at + 4)  # the second member
    struct.pack_into("<LL", content, at + 20, size, size)
    return bytes(content)


def directory_of(size: int) -> bytes:
    """An archive that says that its directory has that size."""
    content = bytearray(archive(compressed))
    struct.pack_into("<L", content, content.rfind(b"PK\x05\x06") + 12, size)
    return bytes(content)


DAMAGED = "is truncated or not a PyTorch file"
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: archive(compressed), f"{DAMAGED}: the member .* is compressed; torch.save compresses nothing"),
    "bomb": (lambda: archive(bomb), f"{DAMAGED}: the member .*data/0 is compressed"),
    "without data": (lambda: archive(without_data), DAMAGED),
    "cut data": (lambda: archive(cut_data), f"{DAMAGED}|is expanded"),
    "large pickle": (lambda: archive(large_pickle), "the member .*data.pkl of .* is 70000002; expected at most 67108864"),
    "more than the file": (lambda: claiming(2**31), f"{DAMAGED}: its members have .* bytes by its directory, and the file"),
    "a directory of gigabytes": (
        lambda: directory_of(2**31),
        "the directory of .* is 2147483648; expected",
    ),
    "no end": (lambda: b"PK\x03\x04" + b"\0" * 100, f"{DAMAGED}: it is a zip archive without an end"),
    "an end alone": (lambda: b"PK\x03\x04PK\x05\x06" + b"\xff" * 18, "the directory of .* is 4294967295|without an end"),
    "an end cut short": (lambda: b"PK\x03\x04PK\x05\x06" + b"\xff" * 8, "without an end"),
    "a locator to nowhere": (
        lambda: b"PK\x03\x04PK\x06\x07" + b"\xff" * 16 + b"PK\x05\x06" + b"\xff" * 18,
        "without an end",
    ),
    "an empty archive": (lambda: archive(lambda old, new: new.writestr("a", b"")), DAMAGED),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "original.pth"])
def test_an_archive_that_torch_did_not_write(name: str, case: str, copy: Path) -> None:
    make, message = ARCHIVES[case]
    (copy / WEIGHTS).unlink()
    (copy / name).write_bytes(make())
    refused(copy / name if name.endswith(".pth") else copy, f"{name}.*({message})|({message})")


def test_a_sound_archive(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert is_archive(tmp_path / "a.pth") is zipped


def test_a_large_file_is_not_opened(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with (copy / "pytorch_model.bin").open("wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.truncate(2**40)
    refused(copy, r"pytorch_model.bin in bytes is 1099511627776; expected at most 68719476736; .*--limit checkpoint_bytes=N")


# ---- tensors that are no plain ones -------------------------------------------------------------------------------------

ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "expanded": (lambda: torch.zeros(1).expand(10**9), r"is expanded: its shape is \[1000000000\], and 4 bytes"),
    "expanded in part": (lambda: torch.zeros(4, 1).expand(4, 10**8), r"is expanded: its shape is \[4, 100000000\]"),
    "a stride of 0 in enough memory": (
        lambda: torch.zeros(10).as_strided((2, 3), (0, 1)),
        r"is expanded: its shape is \[2, 3\]",
    ),
    "overlapping": (lambda: torch.zeros(15).as_strided((8, 8), (1, 1)), r"is expanded: its shape is \[8, 8\], and 60 bytes"),
    "sparse": (lambda: torch.sparse_coo_tensor([[0], [1]], [1.0], (10**6, 10**6)), "is sparse"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "has complex numbers"),
    "meta": (lambda: torch.zeros(10**9, 10**3, device="meta"), "is a Tensor on the device meta"),
    "of many dimensions": (lambda: torch.zeros([1] * 30), "has 30 dimensions"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "original.pth"])
def test_a_tensor_that_is_not_plain(name: str, case: str, copy: Path) -> None:
    make, message = ODD[case]
    (copy / WEIGHTS).unlink()
    content = {"model.a": torch.zeros(1), "transformer.b": make()}
    torch.save(content, copy / name)
    refused(copy / name if name.endswith(".pth") else copy, rf"{name}: .*transformer\.b {message}.*; expected a plain")


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_a_quantised_tensor(tmp_path: Path) -> None:
    try:
        value = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8)
    except RuntimeError:
        pytest.skip("this build of PyTorch has no quantised tensors")
    torch.save({"transformer.a": value}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "transformer.a is (quantised|sparse)|holds objects other than tensors")


class Other(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.parametrize(
    "content",
    [
        {"transformer.a": Other([1.0])},
        {10**5000: torch.zeros(1)},
        {("a", "b"): torch.zeros(1)},
        {"transformer.a": [torch.zeros(1)] * 100},
        {"transformer.a": 10**5000},
        {"a\nb": "x"},
        {"x" * 10**6: "x"},
        {"model": torch.zeros(3)},
        {"model": {"model": torch.zeros(3), "args": 5}},
        10**5000,
        bytearray(10),
        None,
        {1, 2},
    ],
    ids=range(13),
)
def test_content_that_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"a\.pth:? .*(holds|are not those|has no parameter|is truncated or not)")


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_nested_pickle(depth: int, tmp_path: Path) -> None:
    text = b"\x80\x02" + b"(" * depth + b"l" * depth + b"."
    for name in ("a.pth", "b.pth"):
        if name == "a.pth":
            (tmp_path / name).write_bytes(text)
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as made:
                made.writestr("archive/data.pkl", text)
                made.writestr("archive/version", "3\n")
                made.writestr("archive/byteorder", "little")
        refused(tmp_path / name, f"{name}:? (the file holds no state dict|is truncated|holds objects)")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"nheads": True}, "arguments: nheads is true; expected an integer"),
        ({"nheads": 0}, "arguments: nheads is 0; expected an integer >= 1"),
        ({"nheads": -8}, "arguments: nheads is -8; expected an integer >= 1"),
        ({"nheads": 10**30}, "arguments: nheads is an integer of 100 bits; expected an integer"),
        ({"nheads": [8]}, "arguments: nheads is a list of 1; expected an integer"),
        ({"dropout": 5}, "arguments: dropout is 5; expected a number <= 1.0"),
        ({"dropout": "x"}, "arguments: dropout is 'x'; expected a number"),
        ({"dropout": float("nan")}, "arguments: dropout is nan; expected a number >= 0.0"),
        ({"dilation": "yes"}, "arguments: dilation is 'yes'; expected true or false or an integer or null"),
        ({"dilation": torch.zeros(2)}, "arguments: dilation is tensor.*; expected true or false or an integer or null"),
        ({"pre_norm": torch.zeros(2)}, "arguments: pre_norm is tensor.*; expected true or false or null"),
        ({"pre_norm": 3}, "arguments: pre_norm is 3; expected true or false or null"),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_arguments_of_the_training_script(args: dict[str, Any], message: str, as_dict: bool, tmp_path: Path) -> None:
    torch.save({"model": original(), "args": args if as_dict else argparse.Namespace(**args)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", rf"a\.pth: the checkpoint's own {message}")


def original() -> dict[str, Tensor]:
    return as_original(small())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query_embed.weight", torch.zeros(20_000, 32), "num_queries is 20000; expected at most 10000"),
        ("class_embed.weight", torch.zeros(100_003, 1), "the number of labels is 100002; expected at most 100000"),
        ("class_embed.weight", torch.zeros(1, 32), "id2label has no classes"),
        ("class_embed.weight", torch.zeros(0, 32), "id2label has no classes"),
        ("query_embed.weight", torch.zeros(5, 0), "d_model is 0; expected an integer >= 1"),
        (
            "transformer.encoder.layers.0.linear1.weight",
            torch.zeros(70_000, 1),
            "encoder_ffn_dim is 70000; expected",
        ),
        (
            "transformer.encoder.layers.0.linear1.weight",
            torch.zeros(0, 32),
            "encoder_ffn_dim is 0; expected",
        ),
        ("transformer.encoder.layers.1000000000.x", torch.zeros(1), r"missing: .*layers\.2\.|unexpected: .*1000000000"),
        ("transformer.strange", torch.zeros(400_000_000, dtype=torch.uint8), "hold 4.* numbers; expected at most"),
    ],
    ids=range(9),
)
def test_shapes_that_no_detr_has(name: str, value: Tensor, message: str, tmp_path: Path) -> None:
    torch.save({"model": {**original(), name: value}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message)
    (tmp_path / "a.pth").unlink()


def test_more_layers_than_the_limit(tmp_path: Path) -> None:
    layers = {f"transformer.decoder.layers.{index}.linear1.weight": torch.zeros(1) for index in range(1, 1100)}
    torch.save({**original(), **layers}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "decoder_layers is 1100; expected at most 1000; .*--limit layers=N")


# ---- tensors against the configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 1024, "encoder_ffn_dim": 8192},
        {"encoder_layers": 60},
        {"decoder_layers": 60},
        {"num_queries": 10_000},
        {"decoder_ffn_dim": 65_536},
        {"id2label": None, "num_labels": 100_000},
        {"backbone_config": {**models.TINY_BACKBONE, "depths": [1, 1, 60, 1]}},
        {"backbone_config": {**models.TINY_BACKBONE, "hidden_sizes": [16, 24, 32, 4096]}},
        {"backbone_config": None},
        {"use_timm_backbone": True, "backbone": "resnet152", "backbone_config": None},
    ],
    ids=range(10),
)
def test_a_configuration_of_a_larger_model_takes_no_memory(
    changes: dict[str, Any], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.edit_config(copy, **changes)
    built: list[torch.device] = []
    monkeypatch.setattr(DetrForObjectDetection, "init_weights", lambda model: built.append(model.device))
    refused(copy, f"^{copy}: parameters do not fit the configuration; .*(missing|of another shape): ")
    assert {device.type for device in built} == {"meta"}


def test_the_model_without_memory_draws_no_random_numbers(copy: Path) -> None:
    """Or the first weights of a training run would depend on it."""
    checkpoint = load_checkpoint(copy)
    torch.manual_seed(3)
    DetrForObjectDetection._outline(checkpoint.config)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))


def test_more_weights_than_the_configuration_implies(copy: Path) -> None:
    """A file of 10 GB, which takes no space and is not read."""
    file = copy / WEIGHTS
    save_file({"a": torch.zeros(1)}, file)
    numbers = 5 * 10**9
    header = {"a": {"dtype": "F16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}
    with file.open("wb") as stream:
        stream.write(container(header))
        stream.truncate(stream.tell() + 2 * numbers)
    refused(copy, f"the parameters of {WEIGHTS} hold {numbers} numbers; expected at most [0-9]+, which is more than a model")
    header["a"].update(shape=[4 * numbers], data_offsets=[0, 8 * numbers])
    with file.open("wb") as stream:
        stream.write(container(header))
        stream.truncate(stream.tell() + 8 * numbers)
    refused(copy, f"{WEIGHTS} in bytes, in float32, is {16 * numbers}; expected at most 68719476736; .*checkpoint_bytes=N")
    file.unlink()


def test_one_number_under_many_names(copy: Path) -> None:
    """Every name is a copy as soon as float16 becomes float32."""
    (copy / WEIGHTS).unlink()
    value = torch.zeros(1000, 1000, dtype=torch.float16)
    torch.save({f"a{index}": value for index in range(3000)}, copy / "pytorch_model.bin")
    refused(copy, "the parameters of pytorch_model.bin hold 3000000000 numbers; expected at most")


def test_the_number_of_tensors(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    before = limits.current()
    monkeypatch.setenv(limits.VARIABLE, "")
    try:
        limits.raise_limits(tensors=100)
        refused(copy, f"the number of tensors of .*{WEIGHTS} is [0-9]+; expected at most 100; .*--limit tensors=N")
        limits.raise_limits(tensors=500, checkpoint_bytes=10**5)
        with pytest.raises(CheckpointError, match=r"in float32, is .*; expected at most 100000"):
            require_room({"a": [10**5]}, "it")
    finally:
        limits._current = before


def test_two_names_for_one_parameter(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    name = "model.encoder.layers.0.fc1.weight"
    save_file({**weights, "model.encoder.layers.0.mlp.fc1.weight": weights[name].clone()}, copy / WEIGHTS)
    refused(copy, "has parameters with two names, of transformers 4 and 5; expected one")


# ---- the files of a checkpoint ------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize(
    "name", [WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "config.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_a_file_that_is_none(name: str, kind: str, copy: Path) -> None:
    if name not in SETTINGS:
        (copy / WEIGHTS).unlink()
    file = copy / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else copy / "gone")
    refused(copy, rf"{name} (is not a regular file|does not exist)|cannot read .*{name}: ")


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    for path in (tmp_path / "a.pth", Path("/dev/zero"), Path("/dev/null")):
        refused(path, f"^{path} is not a regular file; expected a directory, a .pth file or a hub id")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": None}, "weight_map is null; expected an object"),
        ({"weight_map": {"a": None}}, r"weight_map\['a'\] is null; expected text"),
        ({"weight_map": {"a": ["b"]}}, r"weight_map\['a'\] is a list of 1; expected text"),
        ({"weight_map": {"a": ""}}, "names the file ''; expected names inside its own directory"),
        ({"weight_map": {"a": "."}}, "names the file '.'; expected names inside"),
        ({"weight_map": {"a": "b\0c"}}, r"names the file 'b\\x00c'; expected names inside"),
        ({"weight_map": {"a": "b\nc"}}, r"names the file 'b\\nc'; expected names inside"),
        ({"weight_map": {"a": "..\\b"}}, r"names the file '..\\\\b'; expected names inside"),
        ({"weight_map": {"a": "C:b"}}, "names the file 'C:b'; expected names inside"),
        ({"weight_map": {"a": "x" * 5000}}, "names the file 'xxx.*, which is missing"),
        ({"weight_map": {"a": "folder"}}, "folder is not a regular file"),
        ({"weight_map": {"a": "config.json"}}, "config.json is truncated or not a PyTorch file"),
    ],
    ids=range(13),
)
def test_an_index(index: dict[str, Any], message: str, copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / "folder").mkdir()
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(copy, message)


def test_a_deep_and_a_long_index(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    file = copy / f"{WEIGHTS}.index.json"
    file.write_text("[" * 100_000)
    refused(copy, "is not an index of weight files: .* is nested too deeply")
    file.write_text(json.dumps({"weight_map": {str(index): "a" for index in range(100_001)}}))
    refused(copy, "index.json is 100001; expected at most 100000; .*--limit tensors=N")


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("1.safetensors", "2.safetensors"):
        save_file({"a": torch.zeros(2)}, tmp_path / name)
    torch.save({"a": torch.zeros(2)}, tmp_path / "3.bin")
    for other in ("2.safetensors", "3.bin"):
        with pytest.raises(CheckpointError, match=f"{other} has a, which another file has, too; expected each tensor once"):
            read_weights([tmp_path / "1.safetensors", tmp_path / other])


# ---- memory -------------------------------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.loading import load_model
from detr_export.runtimes.errors import CheckpointError
import detr_export.modeling.segmentation
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
try:
    load_model(load_checkpoint(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says how much memory a process has")
@pytest.mark.parametrize("case", ["configuration", "safetensors", "expanded", "bomb"])
def test_what_is_refused_takes_no_memory(case: str, copy: Path) -> None:
    """With 300 MB more than the process has before it begins."""
    source = copy
    if case == "configuration":  # 1.2 GB
        models.edit_config(copy, d_model=4096, encoder_ffn_dim=16_384)
    elif case == "safetensors":
        header = {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
        with (copy / WEIGHTS).open("wb") as stream:
            stream.write(container(header))
            stream.truncate(stream.tell() + 4 * 10**9)
    else:
        source = copy / "a.pth"
        if case == "expanded":
            torch.save({**original(), "query_embed.weight": torch.zeros(1).expand(10**8, 32)}, source)
        else:
            with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
                made.writestr("archive/data.pkl", b"\0" * 4 * 10**8)
    run = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(source)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    expected = {
        "configuration": "parameters do not fit",
        "safetensors": "hold 1000000000 numbers",
        "expanded": "is expanded",
        "bomb": "is compressed",
    }
    assert expected[case] in run.stdout
    assert run.stdout.count("\n") == 1
