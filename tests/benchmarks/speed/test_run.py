"""The whole benchmark on small models, and its own arithmetic. Nothing here depends on how long something took."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from detr_export import benchmarks
from detr_export.benchmarks.cost.machine_peak import gemm_peak_gflop_per_s
from detr_export.benchmarks.speed.pictures import make_batches, synthetic_picture
from detr_export.benchmarks.speed.run import run
from detr_export.benchmarks.speed.settings import check_sizes, parse_batch, parse_size, sweep_sizes
from detr_export.benchmarks.speed.tables import REPORT_FILES
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.errors import AnnotationError, BackendError, DetrError, ImageError, InputError, OutputError
from tests import models
from tests.benchmarks.conftest import Annotated, Watcher
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import RTX

QUICK = {"rounds": 3, "runs": 2, "threads": 1, "callers": 1}


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak is measured, but not for seconds."""
    monkeypatch.setattr(
        "detr_export.benchmarks.cost.machine_peak.gemm_peak_gflop_per_s",
        lambda threads: gemm_peak_gflop_per_s(threads, 0.01),
    )


@pytest.fixture(scope="module")
def wrong_onnx(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one bias of its class head moved by far more than rounding."""
    model = onnx.load(str(tiny_onnx))
    bias = next(item for item in model.graph.initializer if item.name.endswith("class_labels_classifier.bias"))
    values = numpy_helper.to_array(bias).copy()
    values[0] += 0.1
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    path = tmp_path_factory.mktemp("wrong") / "wrong.onnx"
    onnx.save(model, str(path))
    return path


def test_different_models_are_measured_side_by_side(tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    other = models.config(num_queries=7, id2label={0: "N/A", 1: "ant"})
    models.save_checkpoint(models.oracle(other, models.seeded(other).state_dict()), tmp_path / "other")
    targets = [str(tiny_onnx), f"torch:{tmp_path / 'other'}", f"transformers:{tmp_path / 'other'}"]
    report = run(targets, sizes=[(96, 128)], output=tmp_path / "out", noise=False, **QUICK)
    assert report.problems() == []
    assert [item.correct for item in report.measurements] == [True, True, True]
    digests = [item.checkpoint_sha256 for item in report.variants]
    assert digests[0] == load_checkpoint(tiny_checkpoint).sha256
    assert digests[1] == digests[2] == load_checkpoint(tmp_path / "other").sha256 != digests[0]
    assert "several checkpoints take part" in report.notes[0]
    work = [item.work for item in report.measurements]
    assert work[0] is not None
    assert work[1:] == [None, None]  # it has no file whose work could be counted


def test_three_rounds_of_right_wrong_and_missing(
    tiny_checkpoint: Path, tiny_onnx: Path, wrong_onnx: Path, tmp_path: Path
) -> None:
    seen = Watcher()
    targets = [str(tiny_onnx), f"torch:{tiny_checkpoint}", str(wrong_onnx), str(tmp_path / "no.onnx"), "nonsense:x"]
    targets += [f"transformers:{tiny_checkpoint}", f"openvino:{tiny_onnx}"]
    report = benchmarks.run(
        targets,
        sizes=[(96, 128)],
        batches=[2],
        baseline="torch",
        profile=True,
        output=tmp_path / "out",
        progress=seen,
        command=["detr-bench", "x"],
        **QUICK,
    )
    right = ["ort:tiny.onnx", f"torch:{tiny_checkpoint.name}", f"transformers:{tiny_checkpoint.name}", "openvino:tiny.onnx"]
    by_name = {item.variant: item for item in report.measurements}
    assert list(by_name) == [right[0], right[1], "ort:wrong.onnx", *right[2:]]
    for name in right:
        item = by_name[name]
        assert item.correct
        assert (item.height, item.width, item.batch, item.rounds) == (96, 128, 2, 3)
        assert item.session_ms is not None
        assert len(item.turns) == 3
        assert all(len(turn.session_ms) == 2 for turn in item.turns)
        assert item.images_per_second["1"] > 0
        assert item.ratio_to_baseline is not None
        assert item.work is not None
        assert item.work.gmac == by_name[right[0]].work.gmac  # type: ignore[union-attr]
        assert item.work.share_of_gemm_peak is not None
    assert by_name[right[1]].ratio_to_baseline.session == 1.0  # type: ignore[union-attr]
    wrong = by_name["ort:wrong.onnx"]
    assert wrong.correct is False
    assert wrong.session_ms is None
    assert wrong.largest_difference["logits"] == pytest.approx(0.1, abs=1e-3)
    problems = report.problems()
    assert len(problems) == 3
    assert any("no.onnx does not exist" in line for line in problems)
    assert any("no backend 'nonsense'" in line for line in problems)
    assert any(line.startswith("ort:wrong.onnx at 96x128, batch 2: WRONG, logits differs by 0.1") for line in problems)
    for variant in report.variants:
        if variant.name in right:
            assert variant.error is None
            assert variant.load_s is not None
            assert variant.load_s > 0
            assert variant.first_inference_ms is not None
            assert variant.peak_resident_bytes is not None
            assert variant.peak_resident_bytes > 20 << 20
            assert variant.precision == "fp32"
            assert variant.file_bytes is not None
    assert [profile["variant"] for profile in report.profiles] == [right[0]]
    assert sum(report.profiles[0]["parts"].values()) == pytest.approx(1)

    # The files say the same.
    folder = tmp_path / "out"
    document = json.loads((folder / "report.json").read_text())
    assert document == report.to_dict()
    assert document["command"] == ["detr-bench", "x"]
    assert "WRONG" in (folder / "report.md").read_text()
    assert (folder / "report.csv").read_text().count("\n") == 1 + len(report.measurements)
    pictures = {path.name for path in folder.glob("*.png")}
    assert len(pictures) >= 2
    assert {path.name for path in folder.iterdir()} == pictures | set(REPORT_FILES)

    # The bar never goes backwards, and has its end before it.
    assert seen.steps
    assert all(done <= total for done, total, _ in seen.steps)
    assert "counting the cost" in seen.stages
    assert "profiling" in seen.stages


def test_the_baseline_is_measured_twice(
    tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_export.benchmarks.speed.statistics.is_disturbed", lambda *_: False)
    report = run(
        [str(tiny_onnx), f"torch:{tiny_checkpoint}"],
        *([(96, 128)], [1, 2]),
        profile=True,
        output=tmp_path / "out",
        **{**QUICK, "rounds": 4},
    )
    assert report.problems() == []
    names = ["ort:tiny.onnx", f"torch:{tiny_checkpoint.name}", "ort:tiny.onnx (again)"]
    assert [(item.variant, item.batch) for item in report.measurements] == [(name, n) for n in (1, 2) for name in names]
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["method"]["baseline"] == names[0]
    assert document["method"]["baseline_again"] == names[2]
    assert document["method"]["why_no_noise"] is None
    assert [item["name"] for item in document["variants"]] == names
    for batch in (1, 2):
        baseline, other, again = (item for item in report.measurements if item.batch == batch)
        assert baseline.noise is None
        assert other.noise == again.noise
        assert again.noise is not None
        assert again.ratio_to_baseline is not None
        assert again.ratio_to_baseline.session_differs is False
    assert [item["variant"] for item in document["profiles"]] == names[:1] * 2  # once each batch
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("| ort:tiny.onnx (again) | 96x128 |") == 2
    assert "~ no difference: the baseline measured twice differs from itself by up to" in text


def test_files_are_compiled_once(tiny_onnx: Path, tmp_path: Path, rtx: Knobs) -> None:
    """With the double: the real compiler has tests of its own."""
    targets = [str(tiny_onnx), f"openvino:{tiny_onnx}"]
    report = run(targets, sizes=[(96, 128)], compiled=True, output=tmp_path / "out", **{**QUICK, "rounds": 1, "runs": 1})
    assert report.problems() == []
    (found,) = report.compiled
    assert found["variant"] == "ort:tiny.onnx"
    assert found["compiler"] == f"TensorRT-RTX {RTX}"
    assert found["kernels"] > 0
    assert found["attestation"]["attested"] > 0
    assert len(rtx.builds) == 1
    assert "Compiled by TensorRT-RTX" in (tmp_path / "out" / "report.md").read_text()


def test_what_cannot_be_compiled_is_a_problem(tiny_onnx: Path, rtx: Knobs) -> None:
    rtx.build_error = "no kernel suits this"
    report = run([str(tiny_onnx)], sizes=[(96, 128)], compiled=True, **{**QUICK, "rounds": 1, "runs": 1})
    assert report.compiled == []
    assert len(report.problems()) == 1
    assert report.problems()[0].startswith("compiling ort:tiny.onnx: ")
    assert "no kernel suits this" in report.problems()[0]


@pytest.mark.usefixtures("no_tensorrt")
def test_without_a_compiler_nothing_is_measured(tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=r"detr-export\[rtx\]"):
        run([str(tiny_onnx)], compiled=True)


def test_the_noise_can_be_left_out(tiny_onnx: Path) -> None:
    report = run([str(tiny_onnx)], sizes=[(96, 128)], noise=False, **{**QUICK, "rounds": 4, "runs": 1})
    assert [item.variant for item in report.measurements] == ["ort:tiny.onnx"]
    assert (report.method.baseline_again, report.method.why_no_noise) == (None, "it was not asked for")


def test_files_of_other_precision_and_input(tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    half, half_io, raw = (tmp_path / f"{name}.onnx" for name in ("half", "half_io", "raw"))
    checkpoint = load_checkpoint(tiny_checkpoint)
    export_onnx(checkpoint, half, ExportOptions(precision="fp16", verify=False))
    export_onnx(checkpoint, half_io, ExportOptions(precision="fp16", fp16_io=True, verify=False))
    export_onnx(checkpoint, raw, ExportOptions(input="uint8", verify=False))
    report = run([str(path) for path in (tiny_onnx, half, half_io, raw)], sizes=[(96, 128)], batches=[2], **QUICK)
    assert report.problems() == []
    assert [item.correct for item in report.measurements] == [True] * 4
    assert [item.precision for item in report.variants] == ["fp32", "fp16", "fp16", "fp32"]
    largest = [item.largest_difference["logits"] for item in report.measurements]
    assert largest[1] > 1e-4  # half precision shows, or it was not there
    assert largest[3] < 1e-4
    # What a CPU reaches in float16 is not measured, so it is no peak to compare with.
    shares = [item.work.share_of_gemm_peak if item.work else None for item in report.measurements]
    assert [share is None for share in shares] == [False, True, True, False]


def test_no_target_is_the_demo_in_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_export.benchmarks.speed.targets.has_compiler", lambda: False)  # compiling takes half a minute
    report = run(**{**QUICK, "callers": 0, "rounds": 1, "runs": 1})
    assert [item.name for item in report.variants] == ["torch:demo", "ort:demo", "openvino:demo", "transformers:demo"]
    assert report.problems() == []
    assert all(item.correct for item in report.measurements)
    assert {(item.height, item.width) for item in report.measurements} == {(144, 192)}
    assert all({"logits", "pred_boxes", "pred_masks"} == set(item.largest_difference) for item in report.measurements)
    assert all(item.images_per_second == {} for item in report.measurements)


def test_scores_of_the_same_file(segmenter_onnx: Path, annotated: Annotated, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val").symlink_to(annotated.images)
    (root / "annotations" / "instances_val.json").symlink_to(annotated.instances)
    (root / "annotations" / "panoptic_val.json").symlink_to(annotated.panoptic[0])
    (root / "annotations" / "panoptic_val").symlink_to(annotated.panoptic[1])
    targets = [str(segmenter_onnx), f"openvino:{segmenter_onnx}"]
    report = run(targets, accuracy=root, limit=4, **{**QUICK, "rounds": 1, "runs": 1})
    assert report.problems() == []
    scores, openvino = report.accuracy
    assert openvino.variant == f"openvino:{segmenter_onnx.name}"
    assert (openvino.box_AP, openvino.mask_AP, openvino.PQ) == pytest.approx(
        (scores.box_AP, scores.mask_AP, scores.PQ), abs=0.02
    )
    from detr_export.benchmarks.accuracy.evaluation import evaluate

    found = evaluate(segmenter_onnx, annotated.images, annotated.instances, annotated.panoptic, 4)
    metrics = found.accuracy.metrics()
    assert scores.images == 4
    assert (scores.box_AP, scores.PQ) == (metrics["box"]["AP"], metrics["panoptic"]["PQ"])
    assert scores.mask_AP == metrics["mask"]["AP"]
    assert 0 < scores.box_AP < 1


def test_an_interruption_keeps_what_was_measured(tiny_onnx: Path, tmp_path: Path) -> None:
    class Interrupting(Watcher):
        def step(self, done: int, total: int, note: str = "") -> None:
            if "round 3" in note:
                raise KeyboardInterrupt

    report = run([str(tiny_onnx)], sizes=[(96, 128)], output=tmp_path / "out", progress=Interrupting(), **QUICK)
    assert report.method.interrupted
    assert report.measurements[0].rounds == 2
    assert report.measurements[0].session_ms is not None
    assert "interrupted" in (tmp_path / "out" / "report.md").read_text()


def test_pictures_of_a_folder(tiny_onnx: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(synthetic_picture(number)).resize((80, 60)).save(tmp_path / f"{number}.png")
    report = run([str(tiny_onnx)], sizes=[(64, 96)], images=tmp_path, **QUICK)
    assert report.problems() == []
    assert report.measurements[0].correct


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"threads": 10_000}, InputError, "threads is 10000; expected 1 to"),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"rounds": 0}, InputError, "rounds is 0; expected at least 1"),
        ({"runs": 2, "seconds": 1.0}, InputError, "leave --runs or --seconds out"),
        ({"runs": None, "seconds": -1.0}, InputError, "seconds is -1"),
        ({"callers": -1}, InputError, "callers is -1"),
        ({"sizes": [(0, 5)]}, InputError, "size is 0x5"),
        ({"batches": [0]}, InputError, "batch is 0"),
        ({"sweep": True, "sizes": [(64, 64)]}, InputError, "sweep chooses its own"),
        ({"limit": 0}, InputError, "limit is 0"),
        ({"images": "empty"}, ImageError, "empty"),
        ({"accuracy": "empty"}, AnnotationError, "instances_val"),
        ({"output": "file"}, OutputError, "is not a folder"),
        ({"output": "reported"}, OutputError, "report.json"),
        ({"baseline": "openvino"}, InputError, "baseline 'openvino' is none of the targets"),
    ],
)
def test_refused_before_anything_is_measured(
    arguments: dict[str, object], kind: type[DetrError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_export.benchmarks.speed.run.Runner.measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "reported").mkdir()
    (tmp_path / "reported" / "report.json").touch()
    (tmp_path / "file").touch()
    for name in ("images", "accuracy", "output"):
        if name in arguments:
            arguments = {**arguments, name: tmp_path / str(arguments[name])}
    with pytest.raises(kind, match=message):
        run(["ort:some.onnx"], **{**QUICK, **arguments})  # type: ignore[arg-type]


def test_sizes_and_batches_as_text() -> None:
    assert parse_size("800x1066") == (800, 1066)
    assert parse_batch("4") == 4
    for text in ("800", "x5", "0x5", "800X1066", "-1x5", "8e2x5", ""):
        with pytest.raises(InputError, match="expected HEIGHTxWIDTH"):
            parse_size(text)
    for text in ("0", "-1", "two", ""):
        with pytest.raises(InputError, match="at least 1"):
            parse_batch(text)
    with pytest.raises(InputError, match="leave out either"):
        check_sizes([], [2], sweep=True)


def test_a_sweep_holds_the_own_size_once() -> None:
    found = sweep_sizes((800, 1066))
    assert found == [
        (384, 544, 1),  # 400 and 533, to multiples of 32
        (608, 800, 1),
        (800, 1056, 1),
        (992, 1344, 1),
        (800, 1056, 2),
        (800, 1056, 4),
    ]
    assert sweep_sizes((20, 20))[0] == (32, 32, 1)


def test_batches_begin_again() -> None:
    pictures = [np.full((1, 1, 3), number, np.uint8) for number in range(3)]
    numbers = [[int(picture[0, 0, 0]) for picture in batch] for batch in make_batches(pictures, 2)]
    assert numbers == [[0, 1], [2, 0]]
    assert [len(batch) for batch in make_batches(pictures[:1], 4)] == [4]
    assert len(make_batches([pictures[0]] * 50, 1)) == 8


def test_the_synthetic_picture_is_the_same_every_time() -> None:
    picture = synthetic_picture()
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert (picture == synthetic_picture()).all()
    assert (picture != synthetic_picture(1)).any()
    assert synthetic_picture(size=(48, 64)).shape == (48, 64, 3)
    assert picture.std() > 20
