"""The gate, on sessions made of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec
from detr_export.verification.comparison import GRID, TOLERANCE, Case, Parity, compare, fitting_cases, make_inputs, require

METADATA = Metadata("detection", {0: "a", 1: "b"}, {}, pixel_mask=True)
SMALL = (Case(32, 40, ((32, 40),)), Case(33, 21, ((33, 21), (20, 21))), Case(24, 50, ((24, 50),)))
Outputs = dict[str, np.ndarray]
PIXELS = TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
MASK = TensorSpec("pixel_mask", "int64", ("batch", "height", "width"))


class FakeSession(Session):
    """Answers with numbers that depend on each image; `change` spoils them."""

    def __init__(
        self,
        change: Callable[[Outputs, Mapping[str, np.ndarray]], Outputs] = lambda outputs, inputs: outputs,
        metadata: Metadata | None = METADATA,
        outputs: tuple[str, ...] = ("logits", "pred_boxes"),
        scale: float = 1.0,
    ) -> None:
        self.change, self.metadata, self.scale = change, metadata, scale
        self.inputs = (PIXELS, MASK) if metadata is None or metadata.pixel_mask else (PIXELS,)
        self.outputs = tuple(TensorSpec(name, "float32", ("batch", 2, 3)) for name in outputs)
        self.seen: list[dict[str, np.ndarray]] = []

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        self.seen.append(dict(inputs))
        pixels = inputs["pixel_values"]
        means = pixels.mean(axis=(2, 3)) * self.scale
        outputs = {"logits": np.stack([means, -means], axis=1), "pred_boxes": np.stack([means, means**2], axis=1)}
        return self.change({name: value.astype(np.float32) for name, value in outputs.items()}, inputs)

    def close(self) -> None:
        pass


def adding(name: str, amount: float, height: int | None = None) -> Callable[[Outputs, Mapping[str, np.ndarray]], Outputs]:
    """Adds to one element of an output, only on batches of that height if given."""

    def change(outputs: Outputs, inputs: Mapping[str, np.ndarray]) -> Outputs:
        if height in (None, inputs["pixel_values"].shape[2]):
            outputs[name] = outputs[name].copy()
            outputs[name][-1, -1, -1] += amount
        return outputs

    return change


def test_agreement_passes() -> None:
    parity = compare(FakeSession(), FakeSession(), SMALL)
    assert parity.passed
    assert not parity.weak
    assert parity.max_abs_diff == {"logits": 0.0, "pred_boxes": 0.0}
    assert parity.cases == 3
    assert parity.tolerance == {name: TOLERANCE[name] for name in ("logits", "pred_boxes")}
    assert "verified over 3 batches" in parity.summary()
    require(parity, "it")


@pytest.mark.parametrize(
    ("name", "factor", "passes"),
    [
        ("logits", 0.9, True),
        ("logits", 1.1, False),
        ("pred_boxes", 0.9, True),
        ("pred_boxes", 1.1, False),
    ],
)
def test_the_tolerance_is_the_limit(name: str, factor: float, passes: bool) -> None:
    parity = compare(FakeSession(adding(name, factor * TOLERANCE[name])), FakeSession(), SMALL)
    assert parity.passed is passes
    assert parity.max_abs_diff[name] == pytest.approx(factor * TOLERANCE[name], rel=0.02)


def test_names_the_worst_case() -> None:
    parity = compare(FakeSession(adding("pred_boxes", 0.25, height=33)), FakeSession(), SMALL)
    assert parity.worst_case == str(SMALL[1]) == "2x33x21 (1 padded)"
    assert "FAILED" in parity.summary()
    with pytest.raises(
        VerificationError, match=r"it disagrees .* pred_boxes differs by 0.25 \(tolerance 0.0001\), worst at 2x33"
    ):
        require(parity, "it")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("height", [32, 33, 24])
def test_nan_and_infinity_fail(value: float, height: int) -> None:
    parity = compare(FakeSession(adding("logits", value, height)), FakeSession(), SMALL)
    assert not parity.passed
    assert f"x{height}x" in parity.worst_case
    with pytest.raises(VerificationError, match=r"logits differs by (nan|inf)"):
        require(parity, "it")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_same_nan_on_both_sides_is_no_agreement(value: float) -> None:
    spoiled = adding("logits", value)
    parity = compare(FakeSession(spoiled), FakeSession(spoiled), SMALL)
    assert not parity.passed


def test_outputs_that_ignore_the_image_are_weak() -> None:
    parity = compare(FakeSession(scale=1e-5), FakeSession(scale=1e-5), SMALL)
    assert parity.passed
    assert parity.weak
    assert "warning: the outputs hardly depend on the image" in parity.summary()


def test_spread_is_that_of_the_reference() -> None:
    parity = compare(FakeSession(), FakeSession(), SMALL)
    values = [make_inputs(case, 3, True, seed)["pixel_values"].mean(axis=(2, 3)) for seed, case in enumerate(SMALL)]
    expected = max(float(np.abs(value - values[0][:1]).max()) for value in values)
    assert parity.spread["logits"] == pytest.approx(expected, rel=1e-5)


def test_a_missing_output_is_named() -> None:
    with pytest.raises(ArtifactError, match="the file has no output pred_boxes; expected logits, pred_boxes"):
        compare(FakeSession(outputs=("logits",)), FakeSession(), SMALL)


def test_another_shape_is_an_error() -> None:
    def cut(outputs: Outputs, inputs: Mapping[str, np.ndarray]) -> Outputs:
        return {**outputs, "logits": outputs["logits"][:, :1]}

    with pytest.raises(ArtifactError, match=r"logits has shape \(1, 1, 3\) at 1x32x40; expected \(1, 2, 3\)"):
        compare(FakeSession(cut), FakeSession(), SMALL)


def test_no_fitting_case_is_an_error() -> None:
    narrow = replace(METADATA, ranges={"height": (5000, None)})
    with pytest.raises(ArtifactError, match=r"no case of the verification grid fits the model's ranges .*5000"):
        compare(FakeSession(metadata=narrow), FakeSession(), SMALL)


def test_a_file_without_metadata_takes_the_ranges_of_the_checkpoint() -> None:
    candidate = FakeSession(metadata=None)
    parity = compare(candidate, FakeSession(metadata=replace(METADATA, ranges={"batch": (1, 1)})), SMALL)
    assert parity.cases == 2
    assert {run["pixel_values"].shape[0] for run in candidate.seen} == {1}


def test_both_sides_see_the_same_padded_images() -> None:
    candidate, reference = FakeSession(), FakeSession()
    lines: list[str] = []
    compare(candidate, reference, SMALL, progress=lines.append)
    assert lines == ["1/3 1x32x40", "2/3 2x33x21 (1 padded)", "3/3 1x24x50"]
    for one, other, case in zip(candidate.seen, reference.seen, SMALL, strict=True):
        for name in ("pixel_values", "pixel_mask"):
            assert np.array_equal(one[name], other[name])
        assert one["pixel_mask"].sum() == sum(height * width for height, width in case.valid)
        assert not one["pixel_values"][np.broadcast_to(one["pixel_mask"][:, None] == 0, one["pixel_values"].shape)].any()


def test_without_a_mask_nothing_is_padded() -> None:
    metadata = replace(METADATA, pixel_mask=False)
    candidate = FakeSession(metadata=metadata)
    parity = compare(candidate, FakeSession(metadata=metadata), SMALL)
    assert parity.passed
    assert all(set(run) == {"pixel_values"} for run in candidate.seen)
    assert all(case.valid == ((case.height, case.width),) * len(case.valid) for case in fitting_cases(metadata))
    assert len(fitting_cases(metadata)) == len(GRID)


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        ({}, lambda case: True),
        ({"batch": (1, None), "height": (1, None), "width": (1, None)}, lambda case: True),
        ({"batch": (2, 3)}, lambda case: 2 <= len(case.valid) <= 3),
        ({"height": (1, 480)}, lambda case: case.height <= 480),
        ({"width": (500, None), "batch": (1, 1)}, lambda case: case.width >= 500 and len(case.valid) == 1),
    ],
)
def test_fitting_cases(ranges: dict, allowed: Callable[[Case], bool]) -> None:
    expected = [case for case in GRID if allowed(case)]
    assert fitting_cases(replace(METADATA, ranges=ranges)) == expected
    assert expected


def test_the_grid_is_varied() -> None:
    """Batches, orientations, odd sizes, and padding in one direction and in both."""
    assert {len(case.valid) for case in GRID} == {1, 2, 3, 4}
    assert any(case.height > case.width for case in GRID)
    assert any(case.height < case.width for case in GRID)
    assert any(case.height == case.width for case in GRID)
    assert any(case.height % 2 and case.width % 2 for case in GRID)
    assert any(height < case.height and width < case.width for case in GRID for height, width in case.valid)
    for case in GRID:
        assert all(height <= case.height and width <= case.width for height, width in case.valid)
        assert any(height == case.height for height, _ in case.valid)
        assert any(width == case.width for _, width in case.valid)


def test_parity_to_dict() -> None:
    parity = Parity({"logits": 0.5}, {"logits": 1.0}, {"logits": 3.0}, 4, "1x2x3")
    assert parity.to_dict() == {
        "max_abs_diff": {"logits": 0.5},
        "tolerance": {"logits": 1.0},
        "spread": {"logits": 3.0},
        "cases": 4,
        "worst_case": "1x2x3",
        "passed": True,
        "weak": True,
    }
