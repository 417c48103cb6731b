"""The gate, on sessions made of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec
from detr_export.verification.cases import Case, make_inputs
from detr_export.verification.comparison import Parity, compare, require
from detr_export.verification.reference import Reference, _added_in_fp16
from detr_export.verification.tolerances import TOLERANCES

METADATA = Metadata("detection", {0: "a", 1: "b"}, {}, pixel_mask=True)
SMALL = (Case(32, 40, ((32, 40),)), Case(33, 21, ((33, 21), (20, 21))), Case(24, 50, ((24, 50),)))
NOISE = 1e-4  # by which the checkpoint is off in fp32
FP32 = TOLERANCES["fp32"].multiple
assert FP32 is not None
Outputs = dict[str, np.ndarray]
Change = Callable[[Outputs, Mapping[str, np.ndarray]], Outputs]
MASK = TensorSpec("pixel_mask", "int64", ("batch", "height", "width"))


class FakeSession(Session):
    """Answers with numbers that depend on each image; `change` spoils them."""

    def __init__(
        self,
        change: Change = lambda outputs, inputs: outputs,
        metadata: Metadata | None = METADATA,
        outputs: tuple[str, ...] = ("logits", "pred_boxes"),
        scale: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        self.change, self.metadata, self.scale, self.dtype = change, metadata, scale, dtype
        pixels = TensorSpec("pixel_values", dtype, ("batch", 3, "height", "width"))
        self.inputs = (pixels, MASK) if metadata is None or metadata.pixel_mask else (pixels,)
        self.outputs = tuple(TensorSpec(name, dtype, ("batch", 2, 3)) for name in outputs)
        self.seen: list[dict[str, np.ndarray]] = []

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        self.seen.append(dict(inputs))
        means = inputs["pixel_values"].astype(np.float64).mean(axis=(2, 3)) * self.scale
        outputs = {"logits": np.stack([means, -means], axis=1), "pred_boxes": np.stack([means, means**2], axis=1)}
        return self.change({name: value.astype(self.dtype) for name, value in outputs.items()}, inputs)

    def close(self) -> None:
        pass


def adding(amounts: Mapping[str, float], height: int | None = None) -> Change:
    """Adds to one element of each output, only on batches of that height if given."""

    def change(outputs: Outputs, inputs: Mapping[str, np.ndarray]) -> Outputs:
        if height in (None, inputs["pixel_values"].shape[2]):
            for name, amount in amounts.items():
                outputs[name] = outputs[name].copy()
                outputs[name][-1, -1, -1] += amount
        return outputs

    return change


def reference(
    noise: float = NOISE, spoiled: Change | None = None, metadata: Metadata = METADATA, scale: float = 1.0
) -> Reference:
    """A checkpoint that is `noise` off in fp32, and as much in fp16 times 100."""
    rounded = {
        precision: [FakeSession(adding({"logits": times * noise, "pred_boxes": times * noise}), metadata, scale=scale)]
        for precision, times in (("fp32", 1), ("fp16", 100))
    }
    exact = FakeSession(spoiled or (lambda outputs, inputs: outputs), metadata, scale=scale, dtype="float64")
    return Reference(exact, rounded)


class Lines:
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, line: str) -> None:
        self.lines.append(line)

    def step(self, done: int, total: int, note: str = "") -> None:
        raise AssertionError("the gate has no steps")


def test_agreement_passes() -> None:
    parity = compare(FakeSession(), reference(), SMALL)
    assert parity.passed
    assert not parity.weak
    assert parity.cases == 3
    for name in ("logits", "pred_boxes"):
        assert parity.max_abs_diff[name] < 1e-6
        assert parity.noise_floor[name] == pytest.approx(NOISE, rel=1e-2)
        assert parity.tolerance[name] == pytest.approx(FP32 * NOISE, rel=1e-2)
        assert parity.ratio[name] < 0.01
    assert "verified over 3 batches against the float64 model" in parity.summary()
    require(parity, "it")


@pytest.mark.parametrize("name", ["logits", "pred_boxes"])
@pytest.mark.parametrize(("factor", "passes"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("noise", [1e-5, 1e-3])
def test_the_limit_follows_the_noise_floor(name: str, factor: float, passes: bool, noise: float) -> None:
    parity = compare(FakeSession(adding({name: factor * FP32 * noise})), reference(noise), SMALL)
    assert parity.passed is passes
    assert parity.ratio[name] == pytest.approx(factor * FP32, rel=0.05)


def test_fp16_has_the_floor_of_fp16() -> None:
    multiple = TOLERANCES["fp16"].multiple
    assert multiple is not None
    for factor, passes in ((0.9, True), (1.1, False)):
        spoiled = adding({"logits": factor * multiple * 100 * NOISE})
        parity = compare(FakeSession(spoiled, replace(METADATA, precision="fp16")), reference(), SMALL)
        assert parity.noise_floor["logits"] == pytest.approx(100 * NOISE, rel=1e-2)
        assert parity.passed is passes


def test_int8_has_constants_and_no_floor() -> None:
    allowed = TOLERANCES["int8"].constant
    for factor, passes in ((0.9, True), (1.1, False)):
        spoiled = adding({"logits": factor * allowed["logits"]})
        parity = compare(FakeSession(spoiled, replace(METADATA, precision="int8")), reference(), SMALL)
        assert parity.noise_floor == parity.ratio == {}
        assert parity.tolerance == {name: allowed[name] for name in ("logits", "pred_boxes")}
        assert parity.passed is passes
        assert f"(at most {allowed['logits']:.1e})" in parity.summary()


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ArtifactError, match="precision is 'int4'; expected one of fp32, fp16, int8"):
        compare(FakeSession(metadata=replace(METADATA, precision="int4")), reference(), SMALL)


def test_a_floor_below_what_float32_can_tell_is_its_step() -> None:
    """A checkpoint that happens to be exact would otherwise refuse every file."""
    parity = compare(FakeSession(adding({"logits": 2e-7})), reference(0.0), SMALL)
    assert parity.passed
    values = [make_inputs(case, 3, True, seed)["pixel_values"].mean(axis=(2, 3)) for seed, case in enumerate(SMALL)]
    largest = max(float(np.abs(value).max()) for value in values)
    assert parity.noise_floor["logits"] == pytest.approx(np.finfo(np.float32).eps * largest, rel=1e-3)


def test_outputs_that_are_zero_throughout_are_compared() -> None:
    parity = compare(FakeSession(scale=0.0), reference(0.0, scale=0.0), SMALL)
    assert parity.passed
    assert parity.ratio == {"logits": 0.0, "pred_boxes": 0.0}
    assert "0 x the noise floor" in parity.summary()
    assert not compare(FakeSession(), reference(0.0, scale=0.0), SMALL).passed


@pytest.mark.parametrize("noise", [np.nan, np.inf])
def test_a_checkpoint_that_is_not_finite_passes_nothing(noise: float) -> None:
    assert not compare(FakeSession(), reference(noise), SMALL).passed


def test_names_the_worst_case() -> None:
    parity = compare(FakeSession(adding({"pred_boxes": 0.25}, height=33)), reference(), SMALL)
    assert parity.worst_case == str(SMALL[1]) == "2x33x21 (1 padded)"
    assert "FAILED" in parity.summary()
    message = (
        r"it disagrees with its checkpoint: pred_boxes differs by 2.5e-01, 2.5e\+03 x the noise floor of 1.0e-04 "
        r"\(at most 10 x\); worst at 2x33"
    )
    with pytest.raises(VerificationError, match=message):
        require(parity, "it")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("height", [32, 33, 24])
def test_nan_and_infinity_fail(value: float, height: int) -> None:
    parity = compare(FakeSession(adding({"logits": value}, height)), reference(), SMALL)
    assert not parity.passed
    assert f"x{height}x" in parity.worst_case
    with pytest.raises(VerificationError, match=r"logits differs by (nan|inf)"):
        require(parity, "it")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_same_nan_on_both_sides_is_no_agreement(value: float) -> None:
    spoiled = adding({"logits": value})
    assert not compare(FakeSession(spoiled), reference(spoiled=spoiled), SMALL).passed


def test_outputs_that_ignore_the_image_are_weak() -> None:
    parity = compare(FakeSession(scale=1e-4), reference(scale=1e-4), SMALL)
    assert parity.passed
    assert parity.weak
    assert "warning: the outputs hardly depend on the image" in parity.summary()


def test_spread_is_that_of_the_reference() -> None:
    parity = compare(FakeSession(), reference(), SMALL)
    values = [make_inputs(case, 3, True, seed)["pixel_values"].mean(axis=(2, 3)) for seed, case in enumerate(SMALL)]
    expected = max(float(np.abs(value - values[0][:1]).max()) for value in values)
    assert parity.spread["logits"] == pytest.approx(expected, rel=1e-5)


def test_a_missing_output_is_named() -> None:
    with pytest.raises(ArtifactError, match="the file has no output pred_boxes; expected logits, pred_boxes"):
        compare(FakeSession(outputs=("logits",)), reference(), SMALL)


def test_another_shape_is_an_error() -> None:
    def cut(outputs: Outputs, inputs: Mapping[str, np.ndarray]) -> Outputs:
        return {**outputs, "logits": outputs["logits"][:, :1]}

    with pytest.raises(ArtifactError, match=r"logits has shape \(1, 1, 3\) at 1x32x40; expected \(1, 2, 3\)"):
        compare(FakeSession(cut), reference(), SMALL)


def test_no_fitting_case_is_an_error() -> None:
    narrow = replace(METADATA, ranges={"height": (5000, None)})
    with pytest.raises(ArtifactError, match=r"no case of the verification grid fits the model's ranges .*5000"):
        compare(FakeSession(metadata=narrow), reference(), SMALL)


def test_a_file_without_metadata_takes_the_ranges_of_the_checkpoint() -> None:
    candidate = FakeSession(metadata=None)
    parity = compare(candidate, reference(metadata=replace(METADATA, ranges={"batch": (1, 1)})), SMALL)
    assert parity.cases == 2
    assert {run["pixel_values"].shape[0] for run in candidate.seen} == {1}


def test_all_sides_see_the_same_padded_images() -> None:
    candidate, single, double = FakeSession(), FakeSession(), FakeSession(dtype="float64")
    progress = Lines()
    compare(candidate, Reference(double, {"fp32": [single]}), SMALL, progress)
    assert progress.lines == ["verifying 1/3 1x32x40", "verifying 2/3 2x33x21 (1 padded)", "verifying 3/3 1x24x50"]
    for one, other, exact, case in zip(candidate.seen, single.seen, double.seen, SMALL, strict=True):
        for name in ("pixel_values", "pixel_mask"):
            assert np.array_equal(one[name], other[name])
            assert np.array_equal(one[name], exact[name])
        assert one["pixel_mask"].sum() == sum(height * width for height, width in case.valid)
        assert not one["pixel_values"][np.broadcast_to(one["pixel_mask"][:, None] == 0, one["pixel_values"].shape)].any()


def test_a_reference_computes_once() -> None:
    """An fp16 file is compared twice, as it is and with every result rounded."""
    double, half = FakeSession(dtype="float64"), FakeSession(adding({"logits": 1e-3, "pred_boxes": 1e-3}))
    known = Reference(double, {"fp16": [half]})
    for _ in range(2):
        compare(FakeSession(metadata=replace(METADATA, precision="fp16")), known, SMALL)
    assert len(double.seen) == len(half.seen) == len(SMALL)


def test_the_noise_is_that_of_the_worst_arithmetic() -> None:
    known = Reference(
        FakeSession(dtype="float64"),
        {"fp16": [FakeSession(adding({"logits": 1e-3, "pred_boxes": 4e-3})), FakeSession(adding({"logits": 3e-3}))]},
    )
    noise = known.noise("fp16", SMALL[0], METADATA, 0)
    assert noise["logits"] == pytest.approx(3e-3, rel=1e-3)
    assert noise["pred_boxes"] == pytest.approx(4e-3, rel=1e-3)


@pytest.mark.parametrize("length", [1, 16, 40])
def test_adding_in_fp16(length: int) -> None:
    """As NumPy's float16 does it, 16 products at a time; it is further off than adding in fp32."""
    generator = np.random.default_rng(length)
    left, right = (generator.normal(size=(2, 3, 5, length)).astype(np.float16).astype(np.float32) for _ in range(2))
    right = np.swapaxes(right, 2, 3)
    expected = np.zeros((2, 3, 5, 5), dtype=np.float16)
    for start in range(0, length, 16):
        part = left[..., start : start + 16] @ right[..., start : start + 16, :]
        expected = (expected.astype(np.float32) + part).astype(np.float16)
    given = _added_in_fp16(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    assert np.abs(given - expected).max() <= np.finfo(np.float16).eps * np.abs(expected).max()
    assert np.array_equal(given, given.astype(np.float16))
    assert length < 40 or np.abs(given - left @ right).max() > np.finfo(np.float16).eps


def test_without_a_mask_nothing_is_padded() -> None:
    metadata = replace(METADATA, pixel_mask=False)
    candidate = FakeSession(metadata=metadata)
    assert compare(candidate, reference(metadata=metadata)).passed
    assert all(set(run) == {"pixel_values"} for run in candidate.seen)


def test_parity_to_dict() -> None:
    parity = Parity({"logits": 0.5}, {"logits": 0.25}, {"logits": 1.0}, {"logits": 3.0}, 4, "1x2x3")
    assert parity.to_dict() == {
        "max_abs_diff": {"logits": 0.5},
        "noise_floor": {"logits": 0.25},
        "ratio": {"logits": 2.0},
        "tolerance": {"logits": 1.0},
        "spread": {"logits": 3.0},
        "cases": 4,
        "worst_case": "1x2x3",
        "passed": True,
        "weak": True,
    }
