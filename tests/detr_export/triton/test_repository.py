"""Repositories for Triton: what is in them, read back with Triton's own schema, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, sidecar_path
from detr_export.runtimes.errors import ArtifactError, BackendError, DetrError, InputError, OutputError
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.session import TensorSpec
from detr_export.runtimes.temporary import temporary_folder
from detr_export.triton import repository as repository_module
from detr_export.triton.options import TritonOptions, parse_size
from detr_export.triton.repository import RepositoryResult, write_repository
from tests.detr_export.triton.files import (
    INPUTS,
    LABELS,
    OUTPUTS,
    PLAIN,
    QUERIES,
    UINT8,
    WHOLE,
    write_engine,
    write_onnx,
    write_two_files,
)

BOXES = {"scores": ("FP32", [-1]), "labels": ("INT64", [-1]), "boxes": ("FP32", [-1, 4]), "names": ("STRING", [-1])}
PIXELS = {"image": ("UINT8", [-1, -1, 3])}
THRESHOLD = {"threshold": ("FP32", [1])}
BEST = {"scores": ("FP32", [QUERIES]), "labels": ("INT64", [QUERIES]), "boxes": ("FP32", [QUERIES, 4])}
SEGMENTS = {
    "map": ("INT32", [-1, -1]),
    "ids": ("INT32", [-1]),
    "labels": ("INT64", [-1]),
    "names": ("STRING", [-1]),
    "areas": ("INT64", [-1]),
    "boxes": ("INT32", [-1, 4]),
}


def config_of(folder: Path) -> Any:
    """A model's configuration by Triton's schema, and not by our reader."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def tensors(found: Any) -> dict[str, tuple[str, list[int]]]:
    types = ModelConfig.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return {item.name: (types.values_by_number[item.data_type].name.removeprefix("TYPE_"), [*item.dims]) for item in found}


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(file: Path, place: Path, **options: Any) -> RepositoryResult:
    return write_repository(file, place, TritonOptions(**options))


# ---- what is written ----------------------------------------------------------------------------------------------------


def test_a_plain_file_becomes_a_model_in_python(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    result = write(file, tmp_path / "repository")
    folder = tmp_path / "repository" / "net"
    assert tree(folder) == {"config.pbtxt", "labels.txt", "1/model.py", "1/model.onnx"}
    assert (folder / "1/model.onnx").read_bytes() == file.read_bytes()
    assert not (folder / "1/model.onnx").samefile(file)
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == ["N/A", "person", "", LABELS[3]]

    config = config_of(folder)
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("net", "python", "", 8)
    assert tensors(config.input) == {**PIXELS, **THRESHOLD}
    assert [item.optional for item in config.input] == [False, True]
    assert tensors(config.output) == BOXES
    assert config.HasField("dynamic_batching")
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.count, group.kind, [*group.gpus]) == (1, group.KIND_CPU, [])
    assert json.loads(parameters(config)["id2label"]) == {str(label): name for label, name in LABELS.items()}
    assert parameters(config)["sha256.1"] == sha256_of_file(file) == result.sha256

    assert result.to_dict()["versions"] == [1]
    assert json.loads(json.dumps(result.to_dict()))["outputs"]["boxes"] == "FP32 (any, 4)"
    assert result.summary().splitlines()[0] == f"{folder}  version 1, backend python, batches of up to 8"
    assert set(os.listdir(tmp_path)) == {"net.onnx", "repository"}


def test_all_options_are_honoured(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx", UINT8)
    sizes = ((48, 64), (100, 80))
    given: dict[str, Any] = {"name": "My-model_2.x", "version": 3, "form": "encoded", "threshold": 0.25, "threads": 2}
    given |= {"instances": 4, "max_batch": 6, "max_wait": 0.0015, "preferred_batches": (4, 2, 4), "keep_versions": 5}
    write(file, tmp_path, warm_up=sizes, device="cuda:1", task="detection", **given)
    folder = tmp_path / "My-model_2.x"
    config = config_of(folder)
    assert tree(folder) >= {"3/model.onnx", "3/model.py", "warmup/48x64", "warmup/100x80"}
    assert tensors(config.input) == {"image": ("STRING", [1]), **THRESHOLD}
    assert config.max_batch_size == 6
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    assert [*config.dynamic_batching.preferred_batch_size] == [2, 4]
    assert config.version_policy.latest.num_versions == 5
    (group,) = config.instance_group
    assert (group.count, group.kind, [*group.gpus]) == (4, group.KIND_GPU, [1])
    expected = {"file": "model.onnx", "task": "detection", "input": "encoded", "threshold": "0.25", "device": "cuda:1"}
    assert parameters(config).items() >= {**expected, "threads": "2"}.items()
    for size, sample in zip(sizes, config.model_warmup, strict=True):
        assert (sample.batch_size, sample.inputs["image"].input_data_file) == (1, sample.name)
        content = (folder / "warmup" / sample.name).read_bytes()
        assert int.from_bytes(content[:4], "little") == len(content) - 4
        (tmp_path / "picture").write_bytes(content[4:])
        with Image.open(tmp_path / "picture") as picture:
            assert picture.size == size[::-1]


def test_pixels_are_warmed_up_with_random_ones(tmp_path: Path) -> None:
    write(write_onnx(tmp_path / "net.onnx", WHOLE), tmp_path / "r", warm_up=((48, 64),))
    (sample,) = config_of(tmp_path / "r" / "net").model_warmup
    image = sample.inputs["image"]
    assert (sample.name, sample.batch_size, [*image.dims], image.random_data) == ("48x64", 1, [48, 64, 3], True)


def test_an_end_to_end_file_runs_as_it_is(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx", WHOLE, weights="net.onnx.data")
    write(file, tmp_path / "r", device="cuda", threads=3, max_batch=16)
    folder = tmp_path / "r" / "net"
    assert tree(folder) == {"config.pbtxt", "labels.txt", "1/model.onnx", "1/net.onnx.data"}
    config = config_of(folder)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("onnxruntime", "model.onnx", 16)
    assert (tensors(config.input), tensors(config.output)) == (PIXELS, BEST)
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert parameters(config).items() >= {"color": "bgr", "intra_op_thread_count": "3"}.items()
    assert not {"file", "task", "input", "threshold", "device"} & set(parameters(config))


def test_a_fixed_batch_is_no_batch_of_requests(tmp_path: Path) -> None:
    fixed = [tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in group["image"]) for group in (INPUTS, OUTPUTS)]
    write(write_onnx(tmp_path / "net.onnx", WHOLE, *fixed), tmp_path / "r", warm_up=((48, 64),))
    config = config_of(tmp_path / "r" / "net")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input) == {"image": ("UINT8", [1, -1, -1, 3])}
    assert tensors(config.output)["boxes"] == ("FP32", [1, QUERIES, 4])
    assert [*config.model_warmup[0].inputs["image"].dims] == [1, 48, 64, 3]
    with pytest.raises(InputError, match=r"max_batch is 8, and .* has batches of 1; leave it out"):
        write(tmp_path / "net.onnx", tmp_path / "other", max_batch=8)


def test_an_end_to_end_engine_runs_as_it_is(tmp_path: Path) -> None:
    profiles = ("1x32x32:1x64x64:1x128x128", "1x32x32:4x64x64:4x128x128")
    file = write_engine(tmp_path / "net.engine", WHOLE, profiles)
    write(file, tmp_path / "r")
    assert tree(tmp_path / "r" / "net") == {"config.pbtxt", "labels.txt", "1/model.plan"}
    config = config_of(tmp_path / "r" / "net")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 4)
    assert (tensors(config.input), tensors(config.output)) == (PIXELS, BEST)
    (group,) = config.instance_group
    assert (group.kind, [*group.profile], [*group.gpus]) == (group.KIND_GPU, ["0", "1"], [])
    with pytest.raises(InputError, match=r"max_batch is 5; .* takes 4 at most"):
        write(file, tmp_path / "other", max_batch=5)


@pytest.mark.parametrize("end_to_end", [False, True])
def test_other_engines_run_in_python(tmp_path: Path, end_to_end: bool) -> None:
    """Triton's own backend has no TensorRT-RTX."""
    library = "tensorrt_rtx" if end_to_end else "tensorrt"
    file = write_engine(tmp_path / "net.plan", WHOLE if end_to_end else PLAIN, library=library)
    write(file, tmp_path / "r", device="cuda:2")
    folder = tmp_path / "r" / "net"
    assert tree(folder) == {"config.pbtxt", "labels.txt", "1/model.py", "1/model.plan", "1/model.plan.json"}
    assert read_sidecar(folder / "1" / "model.plan") == read_sidecar(file)
    config = config_of(folder)
    assert (config.backend, config.max_batch_size, tensors(config.output)) == ("python", 2, BOXES)
    assert parameters(config).items() >= {"file": "model.plan", "device": "cuda:2"}.items()
    write(file, tmp_path / "any")
    assert parameters(config_of(tmp_path / "any" / "net"))["device"] == "cuda"  # Triton says which


def test_a_model_in_two_files(tmp_path: Path) -> None:
    file = write_two_files(tmp_path / "segmenter.onnx")
    for task, outputs in {
        None: {**SEGMENTS, "scores": ("FP32", [-1])},
        "instances": {**SEGMENTS, "scores": ("FP32", [-1])},
        "semantic": SEGMENTS,
        "detection": BOXES,
    }.items():
        write(file, tmp_path, name=f"net-{task}", task=task)
        folder = tmp_path / f"net-{task}"
        assert tree(folder) == {"config.pbtxt", "labels.txt", "1/model.py", "1/model.onnx", "1/model.masks.onnx"}
        config = config_of(folder)
        assert tensors(config.output) == outputs
        assert tensors(config.input) == (PIXELS if task == "semantic" else {**PIXELS, **THRESHOLD})
        assert parameters(config)["task"] == (task or "panoptic")
    head = tmp_path / "segmenter.masks.onnx"
    assert (folder / "1/model.masks.onnx").read_bytes() == head.read_bytes()


def test_tables(tmp_path: Path) -> None:
    classes = {number: f"table{name}" for number, name in enumerate(("", " column", " row"))}
    write(write_onnx(tmp_path / "net.onnx", replace(PLAIN, id2label=classes)), tmp_path / "r", task="tables")
    assert tensors(config_of(tmp_path / "r" / "net").output) == {"tables": ("STRING", [1])}


def test_weights_in_folders_come_along(tmp_path: Path) -> None:
    write(write_onnx(tmp_path / "net.onnx", weights="more/weights.bin"), tmp_path / "r")
    assert tree(tmp_path / "r" / "net" / "1") == {"model.onnx", "model.py", "more/weights.bin"}


# ---- versions -----------------------------------------------------------------------------------------------------------


def test_one_more_version(tmp_path: Path) -> None:
    first = write_onnx(tmp_path / "net.onnx")
    second = write_onnx(tmp_path / "better.onnx", replace(PLAIN, source={"name": "better"}))
    write(first, tmp_path / "r", max_batch=3, task="detection", form="encoded", device="openvino")
    config = tmp_path / "r" / "net" / "config.pbtxt"
    config.write_text(f"# mine\n{config.read_text()}")
    before = {name: (tmp_path / "r" / "net" / name).read_bytes() for name in tree(tmp_path / "r" / "net")}
    result = write(second, tmp_path / "r", name="net", version=2)
    assert result.versions == (1, 2)
    after = {name: (tmp_path / "r" / "net" / name).read_bytes() for name in tree(tmp_path / "r" / "net")}
    assert set(after) - set(before) == {"2/model.py", "2/model.onnx"}
    assert {name for name in before if after[name] != before[name]} == {"config.pbtxt"}
    assert after["config.pbtxt"].startswith(before["config.pbtxt"].rstrip(b"\n"))
    found = parameters(config_of(tmp_path / "r" / "net"))
    assert (found["sha256.1"], found["sha256.2"]) == (sha256_of_file(first), sha256_of_file(second))

    with pytest.raises(OutputError, match="2 is there; add --overwrite, or give another --version"):
        write(first, tmp_path / "r", name="net", version=2)
    write(first, tmp_path / "r", name="net", version=2, overwrite=True)
    assert parameters(config_of(tmp_path / "r" / "net"))["sha256.2"] == sha256_of_file(first)
    assert (tmp_path / "r" / "net" / "2" / "model.onnx").read_bytes() == first.read_bytes()
    assert set(os.listdir(tmp_path)) == {"net.onnx", "better.onnx", "r"}
    assert os.listdir(tmp_path / "r") == ["net"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (replace(PLAIN, id2label={0: "dog", 1: "person", 3: "car"}), "id2label is .*dog.* same: give another --name"),
        (WHOLE, "backend is 'python', and the new version has 'onnxruntime'"),
        (replace(PLAIN, ranges={"batch": (1, 2)}), "max_batch is 8; .* takes 2 at most"),
    ],
)
def test_versions_have_to_agree(tmp_path: Path, second: Any, message: str) -> None:
    write(write_onnx(tmp_path / "net.onnx"), tmp_path / "r")
    before = (tmp_path / "r" / "net" / "config.pbtxt").read_bytes()
    with pytest.raises(InputError, match=message):
        write(write_onnx(tmp_path / "second.onnx", second), tmp_path / "r", name="net", version=2)
    assert (tmp_path / "r" / "net" / "config.pbtxt").read_bytes() == before
    assert os.listdir(tmp_path / "r" / "net" / "1")
    assert not (tmp_path / "r" / "net" / "2").exists()


def test_versions_of_end_to_end_files_have_to_agree(tmp_path: Path) -> None:
    write(write_onnx(tmp_path / "net.onnx", WHOLE), tmp_path / "r")
    fewer = tuple(replace(spec, shape=("batch", 5, *spec.shape[2:])) for spec in OUTPUTS["image"])
    other = write_onnx(tmp_path / "other.onnx", WHOLE, outputs=fewer)
    with pytest.raises(InputError, match=r"output is .*dims: 7.*, and the new version has .*dims: 5"):
        write(other, tmp_path / "r", name="net", version=2)
    assert WHOLE.end_to_end is not None
    rgb = replace(WHOLE, end_to_end=replace(WHOLE.end_to_end, color="rgb"))
    with pytest.raises(InputError, match="color is 'bgr', and the new version has 'rgb'"):
        write(write_onnx(tmp_path / "rgb.onnx", rgb), tmp_path / "r", name="net", version=2)


def test_options_that_versions_share_are_refused(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    write(file, tmp_path / "r")
    with pytest.raises(InputError, match="share it; leave --instances, --max-wait-ms out, edit it, or"):
        write(file, tmp_path / "r", version=2, instances=2, max_wait=0.0)


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    write(file, tmp_path / "r")
    config = tmp_path / "r" / "net" / "config.pbtxt"
    good = config.read_text()
    for text, message in {
        good.replace("max_batch_size", "size"): "is no configuration of Triton .*add --overwrite",
        good.replace('"task"', '"tusk"'): "has no parameter 'task'",
        "\udcff": "is no configuration",
    }.items():
        config.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ArtifactError, match=message):
            write(file, tmp_path / "r", version=2)


# ---- what is there already ----------------------------------------------------------------------------------------------


def test_a_model_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    folder = tmp_path / "r" / "net"
    write(file, tmp_path / "r")
    write(file, tmp_path / "r", version=2)
    with pytest.raises(OutputError, match=r"is there, with the versions 1, 2; add --version 3 for one more, or --overwrite"):
        write(file, tmp_path / "r")
    before = tree(folder)

    real = os.rename

    def fail(source: Any, target: Any) -> None:
        if Path(target) == folder and Path(source).name == "net":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(repository_module.os, "rename", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write(file, tmp_path / "r", overwrite=True)
    monkeypatch.undo()
    assert tree(folder) == before
    write(file, tmp_path / "r", overwrite=True, instances=2)
    assert tree(folder) == {"config.pbtxt", "labels.txt", "1/model.py", "1/model.onnx"}
    assert os.listdir(tmp_path / "r") == ["net"]
    assert set(os.listdir(tmp_path)) == {"net.onnx", "r"}


def test_only_models_are_replaced(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    (tmp_path / "r" / "net").mkdir(parents=True)
    (tmp_path / "r" / "net" / "thesis.txt").write_text("mine")
    for version in (None, 2):
        with pytest.raises(OutputError, match="is there and is no model of a repository; give another --name"):
            write(file, tmp_path / "r", overwrite=True, version=version)
    assert (tmp_path / "r" / "net" / "thesis.txt").read_text() == "mine"
    write(file, tmp_path / "r", name="other")
    (tmp_path / "r" / "link").symlink_to(tmp_path / "r" / "other")
    with pytest.raises(OutputError, match="is no model of a repository"):
        write(file, tmp_path / "r", name="link", overwrite=True)


def test_nothing_half_made_is_seen_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are copied, the repository has what it had, and nothing more."""
    file = write_onnx(tmp_path / "net.onnx")
    write(file, tmp_path / "r", name="first")
    seen: list[list[str]] = []
    copy = shutil.copyfile

    def look(source: Path, target: Path) -> None:
        seen.append(sorted(str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").glob("*/*")))
        copy(source, target)

    monkeypatch.setattr(repository_module.shutil, "copyfile", look)
    write(file, tmp_path / "r", name="second")
    write(file, tmp_path / "r", name="first", version=2)
    assert seen[0] == ["first/1", "first/config.pbtxt", "first/labels.txt"]
    assert "first/2" not in seen[1]


def test_a_copy_that_is_not_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_onnx(tmp_path / "net.onnx", weights="w.bin")
    for wrong in ("model.onnx", "w.bin"):

        def damage(source: Path, target: Path, wrong: str = wrong) -> None:
            target.write_bytes(source.read_bytes() + (b"\0" if target.name == wrong else b""))

        monkeypatch.setattr(repository_module.shutil, "copyfile", damage)
        with pytest.raises(ArtifactError, match="changed while it was copied, or the copy is damaged"):
            write(file, tmp_path / "r")
        assert os.listdir(tmp_path / "r") == []


def test_a_repository_that_cannot_be_made_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        write(file, tmp_path / "file")

    def refuse(beside: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(repository_module, "temporary_folder", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        write(file, tmp_path / "r")
    monkeypatch.setattr(repository_module, "temporary_folder", temporary_folder)
    real = os.stat

    def elsewhere(path: Any, **given: Any) -> Any:
        found = real(path, **given)
        return os.stat_result((*found[:2], 0, *found[3:])) if Path(path) == tmp_path / "r" else found

    monkeypatch.setattr(repository_module.os, "stat", elsewhere)
    with pytest.raises(OutputError, match="is the root of a file system"):
        write(file, tmp_path / "r")


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a b", "a\\b", "-a", ".a", "a\n", "ä", "x" * 129, "a:b"])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"name is .*expected letters, digits, .*give another one with --name"):
        write(write_onnx(tmp_path / "net.onnx"), tmp_path / "r", name=name)


def test_a_file_whose_name_is_no_name_of_a_model(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "my net.onnx")
    with pytest.raises(InputError, match="the name of the file is 'my net'"):
        write(file, tmp_path / "r")
    assert write(file, tmp_path / "r", name="net").name == "net"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "panoptic"}, InputError, "cannot do the task 'panoptic'; expected one of detection"),
        ({"threshold": 1.5}, InputError, "threshold is 1.5; expected a number from 0 to 1"),
        ({"form": "tensor"}, InputError, "input is 'tensor'; expected one of pixels, encoded"),
        ({"device": "tpu"}, BackendError, "device is 'tpu'; expected cpu, "),
        ({"max_batch": 0}, InputError, "max_batch is 0; expected 1 to"),
        ({"max_batch": 2**31}, InputError, "max_batch is 2147483648; expected 1 to"),
        ({"version": 0}, InputError, "version is 0; expected 1 to"),
        ({"max_wait": float("nan")}, InputError, "max_wait is nan"),
        ({"max_wait": 1e9}, InputError, "max_wait is 1000000000.0; expected 0 to 2147 seconds"),
        ({"preferred_batches": (9,)}, InputError, "a preferred batch is 9; expected at most max_batch, 8"),
        ({"preferred_batches": (0,)}, InputError, "a preferred batch is 0; expected at least 1"),
        ({"max_batch": 1, "max_wait": 0.1}, InputError, "takes one picture at a time; leave --max-wait-ms"),
        ({"device": "tensorrt", "max_batch": 2}, InputError, "max_batch is 2; .* takes 1 at most on the device tensorrt:0"),
        ({"warm_up": ((4, 5), (4, 5))}, InputError, "a size of warm-up is there twice"),
    ],
)
def test_options_of_a_file(tmp_path: Path, options: dict[str, Any], error: type[DetrError], message: str) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    with pytest.raises(error, match=message):
        write(file, tmp_path / "r", **options)
    assert not (tmp_path / "r" / "net").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "detection"}, InputError, "runs it as it is and --task means nothing"),
        ({"form": "pixels"}, InputError, "runs it as it is and --input means nothing"),
        ({"threshold": 0.5}, InputError, "runs it as it is and --threshold means nothing"),
        ({"device": "openvino"}, BackendError, r"takes cpu or cuda\[:N\]"),
    ],
)
def test_options_of_an_end_to_end_file(
    tmp_path: Path, options: dict[str, Any], error: type[DetrError], message: str
) -> None:
    with pytest.raises(error, match=message):
        write(write_onnx(tmp_path / "net.onnx", WHOLE), tmp_path / "r", **options)


@pytest.mark.parametrize("metadata", [PLAIN, WHOLE])
def test_options_of_an_engine(tmp_path: Path, metadata: Any) -> None:
    file = write_engine(tmp_path / "net.engine", metadata)
    with pytest.raises(BackendError, match=r"device is 'cpu', but an engine takes cuda\[:N\]"):
        write(file, tmp_path / "r", device="cpu")
    with pytest.raises(InputError, match="an engine runs on the GPU; leave --threads out"):
        write(file, tmp_path / "r", threads=2)
    with pytest.raises(ArtifactError, match="takes 2 pictures at least"):
        write(write_engine(tmp_path / "two.engine", metadata, ("2x96x96",)), tmp_path / "r")


def test_a_semantic_map_has_no_threshold(tmp_path: Path) -> None:
    file = write_two_files(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="a semantic map has no threshold; leave --threshold out"):
        write(file, tmp_path / "r", task="semantic", threshold=0.5)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    other = write_onnx(tmp_path / "other.onnx", inputs=(TensorSpec("x", "float32", ("batch", 3)),))
    silent = write_onnx(tmp_path / "silent.onnx")
    silent.write_bytes(silent.read_bytes().replace(b"detr_export", b"detr_imports"[:11]))
    head = write_onnx(tmp_path / "net.masks.onnx", replace(PLAIN, task="masks"))
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x07no")
    for file, message in {
        other: "is not a DETR: it maps x to",
        silent: "has no detr-export metadata",
        head: "is the mask head of a model in two files",
        tmp_path / "damaged.onnx": "damaged",
        tmp_path / "missing.onnx": "does not exist or is not a file",
        tmp_path / "missing.engine": "does not exist or is not a file",
        tmp_path: "is no ONNX file and no engine; export a checkpoint first: detr-export onnx",
        Path("demo"): "is no ONNX file and no engine",
    }.items():
        with pytest.raises(ArtifactError, match=message):
            write(file, tmp_path / "r", name="net")
    assert not (tmp_path / "r").exists()


def test_engines_of_unknown_origin(tmp_path: Path) -> None:
    file = write_engine(tmp_path / "net.engine")
    file.write_bytes(b"evil")
    with pytest.raises(ArtifactError, match="its SHA-256 differs"):
        write(file, tmp_path / "r")
    sidecar_path(file).unlink()
    with pytest.raises(ArtifactError, match=r"net.engine.json is missing; copy it together with the engine"):
        write(file, tmp_path / "r")


def test_a_mask_head_of_another_model(tmp_path: Path) -> None:
    write_two_files(tmp_path / "net.onnx")
    (tmp_path / "net.masks.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"net.masks.onnx is missing"):
        write(tmp_path / "net.onnx", tmp_path / "r")
    write_onnx(tmp_path / "net.masks.onnx", replace(PLAIN, task="masks"))
    with pytest.raises(ArtifactError, match=r"is not the mask head of net.onnx: its SHA-256 differs"):
        write(tmp_path / "net.onnx", tmp_path / "r")


@pytest.mark.parametrize("name", ["model.py", "./model.py", "model.onnx", "model.masks.onnx", "__pycache__/model.pyc"])
def test_weights_that_take_the_place_of_code(tmp_path: Path, name: str) -> None:
    file = write_onnx(tmp_path / "net.onnx", weights=name)
    with pytest.raises(ArtifactError, match=r"keeps weights in .*and Triton's folder has another file of that name"):
        write(file, tmp_path / "r")


def test_weights_elsewhere(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "inner" / "net.onnx", weights="w.bin")
    file.write_bytes(file.read_bytes().replace(b"w.bin", b"../wb"))
    with pytest.raises(ArtifactError, match="expected a file in the folder of the ONNX file"):
        write(file, tmp_path / "r")


def test_a_class_of_two_lines(tmp_path: Path) -> None:
    for name in ("a\nb", "a\u2028b", "a\r"):
        file = write_onnx(tmp_path / "net.onnx", replace(PLAIN, id2label={**LABELS, 1: name}))
        with pytest.raises(ArtifactError, match=r"the class 1 is named .*; expected one line"):
            write(file, tmp_path / "r")
        assert not (tmp_path / "r" / "net").exists()


@pytest.mark.parametrize("text", ["", "480", "480x", "0x5", "-1x5", "480 x 640", "480X640", "４x５", "1x2x3", "5x05"])
def test_sizes(text: str) -> None:
    with pytest.raises(InputError, match="expected HEIGHTxWIDTH, as in 480x640"):
        parse_size(text)
    assert parse_size("480x640") == (480, 640)


@pytest.mark.parametrize(("text", "limit"), [("1x70000", "edge"), ("60000x60000", "pixels"), ("999999999x1", "edge")])
def test_sizes_are_bounded(text: str, limit: str) -> None:
    with pytest.raises(InputError, match=f"--limit {limit}=N"):
        parse_size(text)
