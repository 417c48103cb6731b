"""Golden data: files agree with them, wrong files do not, and nothing damaged is read as if it were whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from detr_export import cli
from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.graphs import export
from detr_export.graphs.export import ExportOptions, exported
from detr_export.loading import reference_session
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ArtifactError, OutputError, VerificationError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.session import Session
from detr_export.verification import tolerances
from detr_export.verification.differences import distance
from detr_export.verification.golden import Golden, GoldenCase, tensors, writing
from detr_export.verification.golden.pictures import noise_picture, shapes_picture
from detr_export.verification.golden.reading import read_golden
from detr_export.verification.golden.tensors import BATCHES, tensor_cases, write_tensor_golden
from detr_export.verification.golden.writing import write_golden

SOURCE = {"name": "a", "sha256": "0" * 64}
# Other tests export these models with these options, too, so that no graph is traced for the golden data alone.
PLAIN = ExportOptions(simplify=False, verify=False)
HALF = ExportOptions(precision="fp16", fp16_io=True, verify=False)


def disagreements(session: Session, golden: Golden) -> list[str]:
    """What a port's own test does: run the inputs, and hold each output against what is expected."""
    wrong = []
    for case in golden.cases:
        given = session.run(case.inputs)
        assert set(given) == set(case.outputs)
        for name, expected in case.outputs.items():
            assert given[name].shape == expected.shape
            if not distance(given[name], expected) <= golden.tolerances[name]:
                wrong.append(f"{case.name} {name}")
    return wrong


def made(checkpoint: Checkpoint, folder: Path, options: ExportOptions) -> tuple[Path, Golden]:
    """A file and its golden data."""
    with exported(checkpoint, folder / "a.onnx", options) as draft:
        about = draft.result
        write_tensor_golden(folder / "golden", "a.onnx", checkpoint, options, about.metadata, about.parity)
    return folder / "a.onnx", read_golden(folder / "golden")


def digest(arrays: Iterator[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def plain(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Golden]:
    """A file that takes the processor's arrays and their mask, with its golden data; not to be changed."""
    return made(tiny, tmp_path_factory.mktemp("plain"), PLAIN)


# ---- what is in them ----------------------------------------------------------------------------------------------------


def test_a_file_agrees(plain: tuple[Path, Golden], tiny: Checkpoint) -> None:
    file, golden = plain
    assert (golden.model, golden.kind, len(golden.cases)) == ("a.onnx", "tensors", len(BATCHES))
    assert golden.source == {"name": tiny.source, "sha256": tiny.sha256}
    with OrtSession(file, threads=1) as session:
        assert disagreements(session, golden) == []
    # The checkpoint answers exactly that; and images differ by far more than a tolerance, or agreement would prove little.
    with reference_session(tiny) as session:
        for case in golden.cases:
            assert all(np.allclose(given, case.outputs[name], atol=1e-5) for name, given in session.run(case.inputs).items())
    for name, limit in golden.tolerances.items():
        assert distance(golden.cases[0].outputs[name], golden.cases[3].outputs[name]) > 100 * limit


def test_the_cases_are_varied(plain: tuple[Path, Golden]) -> None:
    _, golden = plain
    shapes = [case.inputs["pixel_values"].shape for case in golden.cases]
    assert {shape[0] for shape in shapes} == {1, 2}
    assert any(height % 2 and width % 2 for *_, height, width in shapes)
    assert any(height > width for *_, height, width in shapes)
    padded = [case for case in golden.cases if not case.inputs["pixel_mask"].all()]
    assert [case.name for case in padded] == ["shapes-2x96x128-padded", "noise-1x160x72-padded"]
    for case in padded:
        beyond = np.broadcast_to(case.inputs["pixel_mask"][:, None] == 0, case.inputs["pixel_values"].shape)
        assert not case.inputs["pixel_values"][beyond].any()


@pytest.mark.parametrize(
    ("checkpoint", "options", "dtypes"),
    [
        ("tiny_checkpoint", replace(PLAIN, pixel_mask=False), {"pixel_values": "float32"}),
        ("tiny_checkpoint", replace(PLAIN, input="uint8"), {"pixel_values": "uint8", "valid_sizes": "int64"}),
        ("tiny_checkpoint", HALF, {"pixel_values": "float16", "pixel_mask": "int64"}),
        ("segmenter", PLAIN, {"pixel_values": "float32", "pixel_mask": "int64"}),
    ],
    ids=["no-mask", "uint8", "fp16-io", "panoptic"],
)
def test_other_files_agree(
    checkpoint: str, options: ExportOptions, dtypes: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file, golden = made(load_checkpoint(request.getfixturevalue(checkpoint)), tmp_path, options)
    assert ("pred_masks" in golden.tolerances) == (checkpoint == "segmenter")
    assert len(golden.cases) == len(BATCHES)
    for case in golden.cases:
        assert {name: array.dtype.name for name, array in case.inputs.items()} == dtypes
        assert {array.dtype.name for array in case.outputs.values()} == {"float32"}  # also of an fp16 file
    with open_session(file, threads=1) as session:
        assert disagreements(session, golden) == []


def test_tolerances_of_fp16_are_wider_and_follow_from_the_floor(tiny: Checkpoint, plain: tuple[Path, Golden]) -> None:
    _, golden = plain
    metadata = Metadata("detection", dict(tiny.config.id2label), tiny.processor.to_dict(), pixel_mask=True)
    with reference_session(tiny) as session:
        wider = tensors.tensor_tolerances(session, replace(metadata, precision="fp16"))
    for name, limit in golden.tolerances.items():
        constant = {precision: row.constant[name] for precision, row in tolerances.TOLERANCES.items()}
        assert limit < constant["fp32"]
        assert 10 * limit < wider[name] < 10 * constant["fp16"]


def test_a_wrong_weight_is_found(plain: tuple[Path, Golden], tmp_path: Path) -> None:
    """One scale of the attention is wrong by one percent."""
    file, golden = plain
    model = onnx.load(str(file))
    weights = [item for item in model.graph.initializer if tuple(item.dims)[-2:] == (32, 32)]
    assert weights
    weights[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[0]) * np.float32(1.01), weights[0].name))
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    with OrtSession(tmp_path / "wrong.onnx", threads=1) as session:
        assert len(disagreements(session, golden)) >= len(golden.cases)


def test_one_wrong_value_is_found(plain: tuple[Path, Golden]) -> None:
    file, golden = plain
    case = golden.cases[2]
    boxes = case.outputs["pred_boxes"].copy()
    boxes[1, 4, 2] += 3 * golden.tolerances["pred_boxes"]
    wrong = replace(golden, cases=(replace(case, outputs={**case.outputs, "pred_boxes": boxes}),))
    with OrtSession(file, threads=1) as session:
        assert disagreements(session, wrong) == [f"{case.name} pred_boxes"]


class Echo:
    """Stands for a checkpoint where only the inputs matter."""

    def __init__(self, channels: int = 3) -> None:
        self.inputs = (type("Spec", (), {"shape": ("batch", channels, "height", "width")}),)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return inputs


@pytest.mark.parametrize(
    ("changes", "channels", "dtype", "expected"),
    [
        ({}, 3, "float32", "5348d07adbef9d88c5a2d13e9a8cc2afafcec1d683b3b7d2e1446d83ead8a6eb"),
        ({}, 3, "float16", "3fbe8b2d49d4b2096879935c11387de18ab94b7d37e56222623b7555d6103847"),
        ({"input": "uint8"}, 3, "float32", "7627f660ec5934d1c9ff0b112b16e2897c0298acb7b45a05c8584003003250d3"),
        ({}, 1, "float32", "14021c2413d44fcb63a1eab91c808d10e6ded21a5999743dd29198d64ed556f0"),
    ],
)
def test_inputs_are_the_same_on_every_machine(changes: dict[str, Any], channels: int, dtype: str, expected: str) -> None:
    metadata = replace(Metadata("detection", {0: "a"}, {"image_processor_type": "DetrImageProcessor"}, True), **changes)
    cases = tensor_cases(Echo(channels), metadata, dtype)  # type: ignore[arg-type]
    assert digest(array for case in cases for _, array in sorted(case.inputs.items())) == expected


def test_pictures_are_the_same_on_every_machine() -> None:
    drawn = (make(37, 53, 3, seed) for make in (noise_picture, shapes_picture) for seed in range(3))
    assert digest(drawn) == "2f5f42a1eabf2d06cea8bb42a97eef9e069d71fa67576118dd5de20787b81704"


def test_ranges_of_the_model(tiny: Checkpoint) -> None:
    metadata = Metadata("detection", {0: "a"}, tiny.processor.to_dict(), True, ranges={"batch": (1, 1), "height": (1, 100)})
    names = [case.name for case in tensor_cases(Echo(), metadata)]  # type: ignore[arg-type]
    assert names == ["noise-1x97x161", "noise-1x64x64"]
    with pytest.raises(ArtifactError, match="no golden batch fits the model's ranges"):
        list(tensor_cases(Echo(), replace(metadata, ranges={"height": (900, None)})))  # type: ignore[arg-type]


# ---- writing and reading ------------------------------------------------------------------------------------------------


def case(name: str = "one", value: float = 1.5, **outputs: np.ndarray) -> GoldenCase:
    found = {"scores": np.full((1, 3), value, np.float32), "labels": np.arange(3)[None], **outputs}
    return GoldenCase(name, {"image": np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)}, found)


def written(folder: Path, *cases: GoldenCase, overwrite: bool = False) -> Path:
    write_golden(folder, "a.onnx", SOURCE, "end-to-end", cases or (case(), case("two", 2.5)), {"scores": 0.1}, overwrite)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    result = write_golden(tmp_path / "g", "a.onnx", SOURCE, "end-to-end", iter([case(), case("two")]), {"scores": 0.1})
    golden = read_golden(tmp_path / "g")
    assert (golden.model, golden.source, golden.kind, golden.tolerances) == ("a.onnx", SOURCE, "end-to-end", {"scores": 0.1})
    assert [item.name for item in golden.cases] == ["one", "two"]
    for name, array in {**case().inputs, **case().outputs}.items():
        found = {**golden.cases[0].inputs, **golden.cases[0].outputs}[name]
        assert found.dtype == array.dtype
        assert found.flags.writeable
        assert np.array_equal(found, array)
    assert result.cases == 2
    assert result.size_bytes == sum(map(len, contents(tmp_path / "g").values()))
    assert result.summary() == f"{tmp_path / 'g'}{os.sep}  2 cases, 0.0 MB"
    assert os.listdir(tmp_path) == ["g"]


def test_raw_files_are_little_endian_and_in_c_order(tmp_path: Path) -> None:
    turned = np.asfortranarray(np.array([[1, 2], [258, 4]], dtype=">i4"))
    folder = written(tmp_path / "g", case(turned=turned))
    assert (folder / "one.turned.bin").read_bytes() == bytes([1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 4, 0, 0, 0])
    entry = json.loads((folder / "index.json").read_text())["cases"][0]["outputs"]["turned"]
    assert entry == {"file": "one.turned.bin", "dtype": "int32", "shape": [2, 2]}
    with np.load(folder / "one.npz") as packed:
        assert packed["turned"].dtype.str == "<i4"
        assert sorted(packed.files) == ["image", "labels", "scores", "turned"]
    assert contents(folder) == contents(written(tmp_path / "again", case(turned=turned)))


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((), "there is no case"),
        ((case(value=np.nan),), "case one: output scores holds values that are not finite"),
        ((case(), case("ONE")), "two cases are named 'ONE'"),
        ((case("../one"),), "a case is named '../one'; expected letters"),
        ((case(), case("two", more=np.ones(1, np.float32))), "case two has the outputs .*; expected .*, as in case one"),
        ((case(image=np.ones(1, np.int64)),), "image is an input and an output"),
        ((case(masks=np.ones(1, np.float64)),), "output masks is float64; expected one of uint8"),
        ((case(masks=np.ones((1, 0), np.float32)),), r"output masks has shape \(1, 0\)"),
        ((case(masks=np.ones(1, np.float32)),), "expected one for each floating-point output: masks, scores"),
    ],
)
def test_what_is_not_written(cases: tuple[GoldenCase, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        write_golden(tmp_path / "g", "a.onnx", SOURCE, "end-to-end", cases, {"scores": 0.1})
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupted() -> Iterator[GoldenCase]:
        yield case("new")
        raise KeyboardInterrupt

    before = contents(written(tmp_path / "g"))
    with pytest.raises(KeyboardInterrupt):
        write_golden(tmp_path / "g", "a.onnx", SOURCE, "end-to-end", interrupted(), {"scores": 0.1}, overwrite=True)
    assert os.listdir(tmp_path) == ["g"]
    assert contents(tmp_path / "g") == before


def test_a_move_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = contents(written(tmp_path / "g")), os.rename

    def failing(source: Path, target: Path) -> None:
        if (source / "index.json").exists() and "new" in (source / "index.json").read_text():
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(writing.os, "rename", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        written(tmp_path / "g", case("new"), overwrite=True)
    assert os.listdir(tmp_path) == ["g"]
    assert contents(tmp_path / "g") == before


def test_overwriting(tmp_path: Path) -> None:
    folder = written(tmp_path / "g")
    with pytest.raises(OutputError, match="exists; add --overwrite to replace it"):
        written(folder)
    (tmp_path / "link").symlink_to(folder)
    written(tmp_path / "link", case("new"), overwrite=True)  # the link stays, and its target is replaced
    assert (tmp_path / "link").is_symlink()
    assert [item.name for item in read_golden(folder).cases] == ["new"]
    assert not (folder / "one.npz").exists()
    (folder / "new.npz").unlink()
    written(folder, overwrite=True)  # golden data that are damaged may be replaced, too
    assert sorted(os.listdir(tmp_path)) == ["g", "link"]
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty", overwrite=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt is not in its index.json"),
        (lambda folder: (folder / "index.json").unlink(), "it has no index.json"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json: it is not JSON"),
        (lambda folder: (folder / "index.json").write_text('{"pages": []}'), "format_version is missing"),
        (lambda folder: (folder / "one.npz").unlink() or (folder / "one.npz").mkdir(), "one.npz is not in its index.json"),
    ],
)
def test_a_folder_of_something_else_is_kept(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "g")
    spoil(folder)
    before = contents(folder)
    with pytest.raises(OutputError, match=f"not a folder of golden data alone .*{message}.*; give --golden another name"):
        written(folder, overwrite=True)
    assert contents(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is not a folder"):
        written(tmp_path / "file", overwrite=True)


SCORES = ("cases", 0, "outputs", "scores")
REMOVED = object()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("format_version",), 2, "format_version is 2; this detr-export reads 1, update it"),
        (("format_version",), 0, "format_version is 0; expected 1"),
        (("format_version",), True, "format_version is True; expected a whole number"),
        (("format_version",), REMOVED, "format_version is missing"),
        (("kind",), "graphs", "kind is 'graphs'; expected one of tensors, end-to-end"),
        (("model",), "../a.onnx", "model is '../a.onnx'; expected the name of a file"),
        (("model",), 3, "model is 3; expected text"),
        (("source",), {"name": "a"}, "source.sha256 is missing"),
        (("source", "sha256"), "12", "source.sha256 is '12'; expected 64 hexadecimal digits"),
        (("cases",), [], "cases is empty"),
        (("cases",), {}, "cases is {}; expected a list"),
        (("cases", 1), 3, r"cases\[1\] is 3; expected an object"),
        (("cases", 1, "name"), "one", "the name 'one' is in cases twice"),
        (("cases", 1, "name"), "a/b", "a case is named 'a/b'"),
        (("cases", 1, "inputs"), {}, "case two has no input"),
        (("cases", 0, "npz"), "two.npz", r"cases\[0\].npz: scores in .*two.npz is not what its raw file holds"),
        (("cases", 0, "npz"), "one.image.bin", r"cases\[0\].npz: .*one.image.bin is not an .npz file"),
        (("cases", 0, "npz"), REMOVED, r"cases\[0\].npz is missing"),
        ((*SCORES, "file"), "../outside.bin", r"cases\[0\].outputs.scores.file is '../outside.bin'; expected the name"),
        ((*SCORES, "file"), "..", "expected the name of a file in the folder itself"),
        ((*SCORES, "file"), "link.bin", "link.bin is not a regular file"),
        ((*SCORES, "file"), "none.bin", r"cases\[0\].outputs.scores.file: .*none.bin is missing"),
        ((*SCORES, "dtype"), "float64", r"cases\[0\].outputs.scores.dtype is 'float64'; expected one of uint8"),
        ((*SCORES, "dtype"), "float16", r"one.scores.bin has 12 bytes; expected 6 for float16 \(1, 3\)"),
        ((*SCORES, "shape"), [1, 4], r"one.scores.bin has 12 bytes; expected 16 for float32 \(1, 4\)"),
        ((*SCORES, "shape"), [3, 1], "scores in .*one.npz is not what its raw file holds"),
        ((*SCORES, "shape"), [10**30, 10**30], "it has an integer of 100 bits; expected at most 64"),
        ((*SCORES, "shape"), [-1, -3], r"shape is \[-1, -3\]; expected 1 to 8 whole numbers"),
        ((*SCORES, "shape"), [1, 3.0], r"shape is \[1, 3.0\]; expected"),
        ((*SCORES, "shape"), [True, 3], r"shape is \[True, 3\]; expected"),
        ((*SCORES, "shape"), [], r"shape is \[\]; expected"),
        ((*SCORES, "shape"), [3] + [1] * 8, "expected 1 to 8 whole numbers"),
        (("tolerances",), {}, "tolerances are for nothing; expected one for each floating-point output: scores"),
        (("tolerances", "labels"), 1, "tolerances are for labels, scores; expected"),
        (("tolerances", "scores"), float("nan"), "it is not JSON"),
        (("tolerances", "scores"), -1, "tolerances.scores is -1; expected"),
        (("tolerances", "scores"), "0.1", "tolerances.scores is '0.1'; expected"),
    ],
)
def test_a_wrong_index(field: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "g")
    shutil.copyfile(folder / "one.scores.bin", tmp_path / "outside.bin")
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    document = json.loads((folder / "index.json").read_text())
    *parents, last = field
    place = document
    for name in parents:
        place = place[name]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_golden(folder)
    assert str(caught.value).startswith(f"{folder / 'index.json'}: ")
    assert "write the golden data again" in str(caught.value)


def test_twins_in_the_index(tmp_path: Path) -> None:
    folder = written(tmp_path / "g")
    index, text = folder / "index.json", (folder / "index.json").read_text()
    index.write_text(text.replace('"kind":', '"model": "b.onnx", "kind":'))
    with pytest.raises(ArtifactError, match="the name 'model' is in one object twice"):
        read_golden(folder)
    index.write_text(text.replace("two.scores.bin", "one.scores.bin").replace("two.npz", "one.npz"))
    with pytest.raises(ArtifactError, match=r"one\.npz is not what|'one\.npz' is in cases twice"):
        read_golden(folder)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("index.json", b"no", "it is not JSON"),
        ("index.json", b"\xff\xfe", "it is not UTF-8"),
        ("index.json", b"[" * 200_000, "it is nested too deeply"),
        ("index.json", None, "the file does not exist, so its folder is not one of golden data"),
        ("one.scores.bin", None, "one.scores.bin is missing"),
        ("one.scores.bin", bytes(11), "one.scores.bin has 11 bytes; expected 12"),
        ("one.scores.bin", b"\0\0\xc0\x7f" * 3, "case one: output scores holds values that are not finite"),
        ("one.scores.bin", bytes(12), "scores in .*one.npz is not what its raw file holds"),
        ("one.npz", None, "one.npz is missing"),
        ("one.npz", b"PK", "one.npz is not an .npz file"),
    ],
)
def test_damaged_files(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "g")
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_golden(folder)
    assert "write the golden data again" in str(caught.value)


def test_no_flipped_bit_breaks_the_reader(tmp_path: Path) -> None:
    """Each is found, or does not matter; none gives a wrong array."""
    folder = written(tmp_path / "g", case())
    expected = {**case().inputs, **case().outputs}
    for name in ("one.npz", "one.scores.bin"):
        data = (folder / name).read_bytes()
        for index in range(len(data)):
            damaged = bytearray(data)
            damaged[index] ^= 1 << index % 8
            (folder / name).write_bytes(damaged)
            try:
                (found,) = read_golden(folder).cases
            except ArtifactError:
                continue
            assert name == "one.npz"
            assert all(np.array_equal(array, expected[key]) for key, array in {**found.inputs, **found.outputs}.items())
        (folder / name).write_bytes(data)


# ---- the command --------------------------------------------------------------------------------------------------------


def onnx_command(checkpoint: Path, *arguments: str | Path) -> Any:
    quick = ("--no-simplify", "--no-verify")
    return CliRunner().invoke(cli.app, ["onnx", str(checkpoint), *map(str, arguments), *quick])


def test_the_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    place, file = tmp_path / "golden", tmp_path / "a.onnx"
    done = onnx_command(tiny_checkpoint, "-o", file, "--golden", place)
    assert done.exit_code == 0, done.output
    size = sum(map(len, contents(place).values()))
    assert done.stdout.splitlines()[-1] == f"{place}{os.sep}  {len(BATCHES)} cases, {size / 1e6:.1f} MB"
    assert size < 10e6
    assert read_golden(place).model == "a.onnx"
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "golden"]

    again = onnx_command(tiny_checkpoint, "-o", file, "--golden", place, "--overwrite", "--json")
    assert json.loads(again.stdout)["golden"] == {"path": str(place), "cases": len(BATCHES), "size_bytes": size}


def test_neither_appears_without_the_other(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, place = tmp_path / "a.onnx", tmp_path / "golden"

    def fails(*_: object, **__: object) -> Any:
        raise VerificationError("it disagrees")

    with monkeypatch.context() as patch:  # the export fails
        patch.setattr(export, "check_graph", fails)
        assert "it disagrees" in onnx_command(tiny_checkpoint, "-o", file, "--golden", place).output
        assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:  # the golden data fail, when they are nearly finished
        patch.setattr(writing, "check_tolerances", fails)
        assert "it disagrees" in onnx_command(tiny_checkpoint, "-o", file, "--golden", place).output
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("golden", "file", "message"),
    [
        ("mine", "a.onnx", "mine exists; add --overwrite to replace it"),
        ("mine", "mine/a.onnx", "mine/a.onnx would lie in mine, which --golden replaces as a whole"),
        (".", "a.onnx", "a.onnx would lie in ., which --golden replaces as a whole"),
        ("notes.txt", "a.onnx", "notes.txt is not a folder"),
        ("notes.txt/golden", "a.onnx", "cannot write to"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    golden: str, file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    done = onnx_command(Path("no-checkpoint"), "-o", file, "--golden", golden)
    assert done.exit_code == 1
    assert message in done.output
    assert sorted(os.listdir(tmp_path)) == ["mine", "notes.txt"]
