"""The report's documents: their schema, and what they say of failures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detr_export.benchmarks.speed.gpu_state import GpuState
from detr_export.benchmarks.speed.report import Accuracy, Environment, Measurement, Method, Report, Variant, Work
from detr_export.benchmarks.speed.statistics import Noise, Ratio, Turn, pooled_stages, timing
from detr_export.benchmarks.speed.tables import (
    REPORT_FILES,
    csv_text,
    markdown,
    require_report_folder,
    terminal_tables,
    write_report,
)
from detr_export.runtimes.errors import OutputError

TOLERANCE = {"logits": 1e-3, "pred_boxes": 1e-4}


def measurement(variant: str, **changes: Any) -> Measurement:
    turns = [Turn(number, 1.0, 1.5, (1.0, 2.0), (10.0, 12.0), (0.1, 0.2), (13.0, 14.0), number == 2) for number in range(3)]
    values: dict[str, Any] = {
        "variant": variant,
        "height": 800,
        "width": 1066,
        "batch": 1,
        "correct": True,
        "largest_difference": {"logits": 1e-5, "pred_boxes": 2e-6},
        "tolerance": TOLERANCE,
        "rounds": 3,
        "disturbed_rounds": 1,
        "preprocess_ms": timing([1, 2]),
        "session_ms": timing([10, 12]),
        "postprocess_ms": timing([0.1, 0.2]),
        "end_to_end_ms": timing([13, 14]),
        "images_per_second": {"1": 90.0, "2": 150.0},
        "ratio_to_baseline": Ratio(0.5, 0.4, 0.6, 0.55),
        "work": Work(81.0, 1 << 30, 800.0, 0.5),
        "turns": turns,
    }
    return Measurement(**{**values, **changes})


def broken(variant: str, **changes: Any) -> Measurement:
    return Measurement(
        variant, 800, 1066, 1, **{"largest_difference": {}, "tolerance": TOLERANCE, "correct": None, **changes}
    )


@pytest.fixture
def report() -> Report:
    """One variant that is well, one that is wrong, one that could not be opened, one that takes no such size."""
    return Report(
        started="2026-01-01T00:00:00+00:00",
        command=["detr-bench", "a|b.onnx"],
        environment=Environment("A CPU", 2, 8 << 30, None, "Linux", "3.11.0", None, None, {"torch": "2.10.0"}, 2, ["avx2"]),
        method=Method(3, 1, "torch:demo", 0.1, interrupted=False),
        variants=[
            Variant("torch:demo", "torch", "demo", "fp32", "2.10.0", 5_000_000, 1.25, 300.0, 400_000_000),
            Variant("ort:bad.onnx", "ort", "bad.onnx", "fp32", "1.20", 6_000_000, 0.25, 30.0, 100_000_000),
            Variant("ort:no.onnx", "ort", "no.onnx", error="no.onnx does not exist"),
            Variant("openvino:a|b.onnx", "openvino", "a|b.onnx", "fp32", "2026", 6_000_000, 0.25, 30.0, 100_000_000),
        ],
        measurements=[
            measurement("torch:demo"),
            broken("ort:bad.onnx", correct=False, largest_difference={"logits": 0.5, "pred_boxes": None}),
            broken("openvino:a|b.onnx", error="height is 800; this model takes 1 to 640"),
        ],
        accuracy=[Accuracy("torch:demo", 100, 0.4, 0.7, None, None)],
        profiles=[
            {
                "variant": "ort:a.onnx",
                "height": 800,
                "width": 1066,
                "batch": 1,
                "operators": [{"operator": "Conv", "calls": 53, "total_ms": 400.0, "share": 0.8}],
                "parts": {"backbone": 0.8, "other": 0.2},
            }
        ],
        errors=["accuracy of ort:a.onnx: no"],
    )


def test_clocks_of_a_gpu_are_kept_and_shown(report: Report) -> None:
    first = report.measurements[0]
    slowed = replace(first.turns[0], gpu=GpuState(1500, 3201, 88, 700.0, ("temperature",)))
    free = replace(first.turns[1], gpu=GpuState(1980, 3201, 50, 500.0, ()))
    slowed = replace(slowed, stages_ms=((0.5, 0.2, 3.0, 0.1), (0.7, 0.4, 5.0, 0.3)))
    turns = [slowed, free, first.turns[2]]
    changed_first = replace(first, turns=turns, stages_ms=pooled_stages(turns))
    changed = replace(report, measurements=[changed_first, *report.measurements[1:]])
    assert changed.measurements[0].slowed_rounds == 1
    document = json.loads(changed.to_json())["measurements"][0]
    assert document["turns"][0]["gpu"]["slowed_by"] == ["temperature"]
    assert document["turns"][0]["stages_ms"] == [[0.5, 0.2, 3.0, 0.1], [0.7, 0.4, 5.0, 0.3]]
    assert document["stages_ms"]["compute_ms"]["p50"] == 4.0
    assert "| torch:demo | 800x1066 | 1 | 0.60 | 0.30 | 4.00 | 0.20 |" in markdown(changed)
    assert "compute_p50_ms" in csv_text(changed)
    assert "On the GPU" not in markdown(report)
    assert "3 (1 disturbed, 1 clocks down)" in markdown(changed)


def test_the_instruction_sets_are_named(report: Report) -> None:
    assert "- A CPU, 2 cores, 8 GiB, Linux, Python 3.11.0\n- instruction sets: avx2\n" in markdown(report)


def test_scores_stand_beside_times(report: Report) -> None:
    text = markdown(report)
    assert "## Accuracy, and the session's time at 800x1066, batch 1" in text
    assert "| torch:demo | 100 | 0.4000 | 0.7000 | - | - | 11.0 |" in text


def test_times_of_disturbed_turns_are_marked(report: Report) -> None:
    """They count where more than half of a variant's turns were disturbed."""
    assert "quiet machine" not in markdown(report)  # one of three was
    changed = replace(report, measurements=[measurement("torch:demo", disturbed_rounds=2), *report.measurements[1:]])
    text = markdown(changed)
    assert "| torch:demo | 800x1066 | 1 | 11.0 ! |" in text
    assert "| 13.5 ! |" in text
    assert "! more than half of its turns were disturbed, and all of them count: measure it on a quiet machine." in text


def test_a_name_stays_on_one_line(report: Report) -> None:
    from rich.console import Console

    name = "openvino:a_model_with_a_long_name_that_somebody_chose.onnx"
    console = Console(width=80, file=io.StringIO())
    console.print(*terminal_tables(replace(report, measurements=[measurement(name)])), sep="\n")
    assert name in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_was_compiled_is_shown(report: Report) -> None:
    kernels = {"kernels": 186, "fused_attentions": 18, "attentions": 18, "fp32": 5, "casts": 1, "copies": 4}
    found = {**kernels, "weight_bytes": 82_500_000, "plan_bytes": None, "variant": "ort:a|b.onnx", "compiler": "a compiler"}
    text = markdown(replace(report, compiled=[found]))
    assert "Compiled by a compiler, first profile" in text
    assert r"| ort:a\|b.onnx | 186 | 18 of 18 | 5 | 1 | 4 | 82.5 | - |" in text
    assert "Compiled by" not in markdown(report)


def test_schema(report: Report) -> None:
    """The names that readers of report.json rely on."""
    document = report.to_dict()
    assert set(document) == {
        *("schema", "started", "command", "environment", "method", "variants", "measurements"),
        *("accuracy", "profiles", "compiled", "errors", "notes"),
    }
    assert set(document["environment"]) == {
        *("cpu", "cores", "memory_bytes", "governor", "os", "python", "gpu", "driver", "versions", "threads"),
        "instruction_sets",
    }
    assert set(document["method"]) == {
        *("rounds", "warmup_runs", "baseline", "calibration_tolerance", "interrupted", "baseline_again", "why_no_noise"),
    }
    assert set(document["variants"][0]) == {
        *("name", "backend", "target", "precision", "version", "file_bytes", "load_s", "first_inference_ms"),
        *("peak_resident_bytes", "device_memory_bytes", "error", "input", "checkpoint_sha256"),
    }
    item = document["measurements"][0]
    assert set(item) == {
        *("variant", "height", "width", "batch", "correct", "largest_difference", "tolerance", "rounds"),
        *("disturbed_rounds", "preprocess_ms", "session_ms", "postprocess_ms", "end_to_end_ms", "images_per_second"),
        *("ratio_to_baseline", "work", "error", "turns", "stages_ms"),
    }
    assert set(item["session_ms"]) == {"min", "p50", "p90", "p95", "p99", "samples"}
    assert set(item["ratio_to_baseline"]) == {
        *("session", "session_low", "session_high", "end_to_end", "noise", "session_differs", "end_to_end_differs"),
    }
    assert set(item["work"]) == {"gmac", "moved_bytes", "gflop_per_s", "share_of_gemm_peak"}
    assert set(document["accuracy"][0]) == {"variant", "images", "box_AP", "box_AP50", "mask_AP", "PQ"}


def with_noise(report: Report) -> Report:
    """Three variants at two sizes; at one of them the noise is known."""
    noise = Noise(0.125, 0.0625)
    names = ("torch:demo", "ort:a.onnx", "torch:demo (again)")
    ratios = (Ratio(1.0, 1.0, 1.0, 1.0), Ratio(0.5, 0.4, 0.6, 0.95, noise, True, False))
    again = Ratio(1.01, 0.95, 1.12, 1.02, noise, False, False)
    rows = [measurement(name, ratio_to_baseline=ratio) for name, ratio in zip(names, (*ratios, again), strict=True)]
    method = replace(report.method, baseline_again=names[2])
    return replace(report, variants=[Variant(name, "torch", "demo") for name in names], measurements=rows, method=method)


def test_a_ratio_within_the_noise_is_marked(report: Report) -> None:
    noisy = with_noise(report)
    text = markdown(noisy)
    assert "| 1.00 (1.00-1.00) |" in text  # the baseline itself
    assert "| 0.50 (0.40-0.60) |" in text
    assert "| 1.01 (0.95-1.12) ~ |" in text
    line = "~ no difference: the baseline measured twice differs from itself by up to 12.5% (end to end 6.2%)."
    assert text.index("1.01 (0.95-1.12)") < text.index(line) < text.index("## Variants")
    document = json.loads(noisy.to_json())
    assert document["measurements"][1]["ratio_to_baseline"] == {
        "session": 0.5,
        "session_low": 0.4,
        "session_high": 0.6,
        "end_to_end": 0.95,
        "noise": {"session": 0.125, "end_to_end": 0.0625},
        "session_differs": True,
        "end_to_end_differs": False,
    }
    rows = list(csv.DictReader(io.StringIO(csv_text(noisy))))
    assert [row["ratio_session_differs"] for row in rows] == ["", "True", "False"]
    assert [row["ratio_end_to_end_differs"] for row in rows] == ["", "False", "False"]
    assert [(row["noise_session"], row["noise_end_to_end"]) for row in rows] == [("", ""), *[("0.125", "0.0625")] * 2]


def test_the_noise_of_each_size_is_told(report: Report) -> None:
    noisy = with_noise(report)
    other = replace(noisy.measurements[1], width=1333, ratio_to_baseline=Ratio(0.9, 0.9, 0.9, 0.9))
    text = markdown(replace(noisy, measurements=[*noisy.measurements, other]))
    assert "| 0.90 (0.90-0.90) |" in text  # nothing is known of it
    assert "itself by up to 12.5% (end to end 6.2%) at 800x1066, batch 1; by an unknown amount at 800x1333, batch 1." in text


def test_noise_that_was_not_measured_is_told(report: Report) -> None:
    assert "differs from itself" not in markdown(report)
    changed = replace(report, method=replace(report.method, why_no_noise="it was not asked for"))
    assert "\nThe noise of the ratios was not measured: it was not asked for.\n" in markdown(changed)
    assert "~" not in markdown(changed)


def test_problems(report: Report) -> None:
    assert report.problems() == [
        "ort:no.onnx: no.onnx does not exist",
        "ort:bad.onnx at 800x1066, batch 1: WRONG, logits differs by 0.5 (tolerance 0.001), "
        "pred_boxes differs by an unknown amount (tolerance 0.0001); it was not timed",
        "openvino:a|b.onnx at 800x1066, batch 1: height is 800; this model takes 1 to 640",
        "accuracy of ort:a.onnx: no",
    ]


def test_csv(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert [row["variant"] for row in rows] == ["torch:demo", "ort:bad.onnx", "openvino:a|b.onnx"]
    first, second, third = rows
    assert (first["session_p50_ms"], first["end_to_end_min_ms"], first["correct"]) == ("11.0", "13.0", "True")
    assert (first["images_per_second_2_callers"], first["peak_resident_bytes"]) == ("150.0", "400000000")
    assert (first["ratio_session"], first["gmac"], first["load_s"]) == ("0.5", "81.0", "1.25")
    assert (second["session_p50_ms"], second["correct"]) == ("", "False")
    assert third["error"] == "height is 800; this model takes 1 to 640"


def test_markdown(report: Report) -> None:
    text = markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| torch:demo | 800x1066 | 1 | 11.0 |") for line in rows)
    assert any(line.startswith("| ort:bad.onnx | 800x1066 | 1 | WRONG |") for line in rows)
    assert any(line.startswith("| ort:no.onnx | failed |") for line in rows)
    assert any(line.startswith("| openvino:a\\|b.onnx | 800x1066 | 1 | failed |") for line in rows)
    assert "- 1 of 3 turns were disturbed" in text
    assert "A CPU, 2 cores" in text
    assert "0.50 (0.40-0.60)" in text


def test_terminal(report: Report) -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200).print(*terminal_tables(report), sep="\n")
    text = out.getvalue()
    assert "ratio to torch:demo" in text
    for word in (
        "WRONG",
        "failed",
        "0.50 (0.40-0.60)",
        "90.00 / 150.00",
        "800 (50%)",
        "3 (1 disturbed)",
        "Conv",
        "backbone",
    ):
        assert word in text
    assert "interrupted" not in text
    Console(file=out, width=200).print(*terminal_tables(with_noise(report)), sep="\n")
    assert "1.01 (0.95-1.12) ~" in out.getvalue()
    assert "~ no difference: the baseline measured twice differs from itself by up to 12.5%" in out.getvalue()


def test_without_a_peak_there_is_a_rate_and_no_share(report: Report) -> None:
    first = replace(report.measurements[0], work=Work(81.0, 1 << 30, 800.0, None))
    changed = replace(report, measurements=[first, *report.measurements[1:]], notes=["a note"])
    assert "| 800 (-) |" in markdown(changed)
    assert "- a note" in markdown(changed)
    assert next(csv.DictReader(io.StringIO(csv_text(changed))))["share_of_gemm_peak"] == ""


def test_an_interrupted_run_says_so(report: Report) -> None:
    from dataclasses import replace

    assert "interrupted: " in markdown(replace(report, method=replace(report.method, interrupted=True)))


def test_a_report_of_nothing_can_be_written(report: Report, tmp_path: Path) -> None:
    from dataclasses import replace

    empty = replace(report, variants=[], measurements=[], accuracy=[], profiles=[], errors=[])
    assert {path.name for path in write_report(empty, tmp_path)} == set(REPORT_FILES)
    assert empty.problems() == []
    assert json.loads((tmp_path / "report.json").read_text()) == empty.to_dict()


def test_files(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    require_report_folder(folder, overwrite=False)
    written = write_report(report, folder)
    assert {"report.json", "report.csv", "report.md"} < {path.name for path in written}
    assert all(path.stat().st_size for path in written)
    with pytest.raises(OutputError, match=r"report.json exists; add --overwrite"):
        require_report_folder(folder, overwrite=False)
    require_report_folder(folder, overwrite=True)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        require_report_folder(tmp_path / "file", overwrite=True)


def test_operators_that_hardly_count_share_a_row(report: Report) -> None:
    shares = {"Conv": 0.7, "MatMul": 0.29, "Add": 0.004, "Mul": 0.004, "Cast": 0.002}
    operators = [{"operator": name, "calls": 2, "total_ms": 100 * share, "share": share} for name, share in shares.items()]
    profile = {**report.profiles[0], "operators": operators}
    text = markdown(replace(report, profiles=[profile]))
    assert "| MatMul | 2 | 29.00 | 29.0% |" in text
    assert "| 3 others | 6 | 1.00 | 1.0% |" in text
    assert "| Add |" not in text
    text = markdown(replace(report, profiles=[{**profile, "operators": operators[:3]}]))
    assert "| Add | 2 | 0.40 | 0.4% |" in text
