"""What two models are fed: the same images, each as it takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import DetrImageProcessor
from detr_export.runtimes.errors import ArtifactError, ImageError, InputError
from detr_export.runtimes.session import Session, TensorSpec
from detr_export.verification.array_file import array_batches
from detr_export.verification.batches import Batch, Batches, grid_batches, picture_batches
from detr_export.verification.cases import GRID, Case
from tests.detr_export.verification.fake_sessions import BYTES, HALF, MASK, PIXELS, SIZES, FakeSession, about

SMALL = (Case(32, 40, ((32, 40),)), Case(33, 21, ((33, 21), (20, 21))))


def made(batches: Batches) -> list[Batch]:
    found = list(batches.made)
    assert len(found) == batches.count
    return found


# ---- the grid -----------------------------------------------------------------------------------------------------------


def test_both_get_the_grid() -> None:
    batches = grid_batches(FakeSession(), FakeSession())
    assert batches.count == len(GRID)
    assert batches.notes == ()
    small = made(grid_batches(FakeSession(), FakeSession(), SMALL))
    assert [batch.case for batch in small] == ["1x32x40", "2x33x21 (1 padded)"]
    for batch in small:
        assert batch.model.keys() == batch.other.keys() == {"pixel_values", "pixel_mask"}
        assert all(np.array_equal(batch.model[name], batch.other[name]) for name in batch.model)
    assert small[1].model["pixel_mask"].sum() == 33 * 21 + 20 * 21
    assert not np.array_equal(small[1].model["pixel_values"][0], small[1].model["pixel_values"][1])


@pytest.mark.parametrize(
    ("blind", "names"), [((True, False), "MODEL"), ((False, True), "OTHER"), ((True, True), "MODEL and OTHER")]
)
def test_nothing_is_padded_where_one_takes_no_mask(blind: tuple[bool, bool], names: str) -> None:
    batches = grid_batches(*(FakeSession([PIXELS] if item else [PIXELS, MASK]) for item in blind), SMALL)
    assert batches.notes == (f"no image is padded, because {names} has no input pixel_mask or valid_sizes",)
    for batch, case in zip(made(batches), SMALL, strict=True):
        assert batch.case == f"{len(case.valid)}x{case.height}x{case.width}"
        assert np.array_equal(batch.model["pixel_values"], batch.other["pixel_values"])
        for given, without in zip((batch.model, batch.other), blind, strict=True):
            assert ("pixel_mask" in given) is not without
            assert without or given["pixel_mask"].all()


@pytest.mark.parametrize("settings", [{}, {"image_mean": 0.5, "image_std": [0.25, 0.5, 1.0]}, {"do_normalize": False}])
def test_bytes_and_floats_are_the_same_images(settings: dict[str, Any]) -> None:
    """The floats are what MODEL's processor makes of the bytes; what lies beyond an image is noise in the bytes alone."""
    metadata = about(processor=settings)
    batch = made(grid_batches(FakeSession(metadata=metadata), FakeSession([BYTES, SIZES], metadata=about()), SMALL))[1]
    images, sizes = batch.other["pixel_values"], batch.other["valid_sizes"]
    assert (images.dtype, images.shape, sizes.tolist()) == (np.uint8, (2, 33, 21, 3), [[33, 21], [20, 21]])
    processor = DetrImageProcessor(**settings)
    for index, (height, width) in enumerate(sizes):
        one = processor.preprocess(images[index, :height, :width], do_resize=False, return_tensors="np")
        assert np.array_equal(batch.model["pixel_values"][index, :, :height, :width], one["pixel_values"][0])
    assert not batch.model["pixel_values"][1, :, 20:].any()
    assert images[1, 20:].any()
    assert batch.model["pixel_mask"].sum() == 33 * 21 + 20 * 21


def test_the_processor_is_that_of_model() -> None:
    plain, other = about(), about(processor={"do_normalize": False})
    note = ("both models get images as the processor of MODEL makes them",)
    for first, second, normalized in ((plain, other, True), (other, plain, False)):
        batches = grid_batches(FakeSession(metadata=first), FakeSession([BYTES, SIZES], metadata=second), SMALL)
        assert batches.notes == note
        assert any((batch.model["pixel_values"] < 0).any() for batch in made(batches)) is normalized
    nameless = grid_batches(FakeSession(), FakeSession([BYTES, SIZES], metadata=plain), SMALL)
    assert nameless.notes == ("both models get images as the processor of OTHER makes them",)
    assert grid_batches(FakeSession(metadata=plain), FakeSession([BYTES, SIZES], metadata=plain), SMALL).notes == ()


def test_bytes_need_no_processor_if_both_take_them() -> None:
    batch = made(grid_batches(FakeSession([BYTES, SIZES]), FakeSession([BYTES, SIZES]), SMALL))[0]
    assert np.array_equal(batch.model["pixel_values"], batch.other["pixel_values"])
    with pytest.raises(ArtifactError, match=r"neither MODEL nor OTHER says how images are prepared.*give --inputs"):
        grid_batches(FakeSession(), FakeSession([BYTES, SIZES]), SMALL)


def test_half_precision_gets_the_same_images_rounded() -> None:
    batch = made(grid_batches(FakeSession([HALF, MASK]), FakeSession(), SMALL))[0]
    assert batch.model["pixel_values"].dtype == np.float16
    assert np.array_equal(batch.model["pixel_values"], batch.other["pixel_values"].astype(np.float16))


def fixed(batch: int, height: int, width: int) -> list[TensorSpec]:
    return [replace(PIXELS, shape=(batch, 3, height, width)), replace(MASK, shape=(batch, height, width))]


def test_only_what_both_take() -> None:
    """Ranges, and sizes that are fixed; a file of one size is also compared on that size."""
    ranged = FakeSession(metadata=about(ranges={"batch": (1, 1), "height": (1, 500)}))
    assert [batch.case for batch in made(grid_batches(ranged, FakeSession()))] == ["1x480x640", "1x333x499"]
    other = FakeSession(metadata=about(ranges={"width": (600, None)}))
    for pair in ((ranged, other), (other, ranged)):
        assert [batch.case for batch in made(grid_batches(*pair))] == ["1x480x640"]
    sized = FakeSession(fixed(2, 50, 70))
    for pair in ((sized, FakeSession()), (FakeSession(), sized)):
        assert [batch.case for batch in made(grid_batches(*pair))] == ["2x50x70 (identical)", "2x50x70 (1 padded)"]
    with pytest.raises(
        ArtifactError,
        match=r"no case of the verification grid fits both: MODEL takes .*50, 70\), OTHER .*, batch 1 to 1.*--images",
    ):
        grid_batches(sized, ranged)


def test_no_case_fits_other_channels() -> None:
    wrong = replace(PIXELS, shape=("batch", 1, "height", "width"))
    with pytest.raises(ArtifactError, match="no case of the verification grid fits both"):
        grid_batches(FakeSession([wrong, MASK]), FakeSession())


def test_other_dtypes_are_refused() -> None:
    wrong = replace(PIXELS, dtype="bfloat16")
    with pytest.raises(ArtifactError, match=r"MODEL: the model: input pixel_values is bfloat16 .*; expected float32 or"):
        grid_batches(FakeSession([wrong, MASK]), FakeSession())


def test_the_grid_is_for_detrs() -> None:
    odd = FakeSession([TensorSpec("x", "float32", (1,))])
    with pytest.raises(ArtifactError, match=r"OTHER: the model is not a DETR: it maps x to .*; or give --inputs"):
        grid_batches(FakeSession(), odd)
    with pytest.raises(ArtifactError, match="MODEL: the model is not a DETR"):
        picture_batches(odd, FakeSession(), ["a.jpg"])


# ---- pictures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, and something else."""
    random = np.random.default_rng(0)
    for name, size in (("a.png", (50, 80, 3)), ("b.png", (90, 45, 3))):
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


@pytest.mark.parametrize("inputs", [[PIXELS], [PIXELS, MASK], [BYTES], [BYTES, SIZES]])
def test_pictures_are_prepared_by_the_processor_of_model(inputs: list[TensorSpec], folder: Path) -> None:
    settings = {"image_mean": [0.1, 0.2, 0.3]}
    model = FakeSession(metadata=about(processor=settings))
    batches = picture_batches(model, FakeSession(inputs, metadata=about()), [folder])
    assert batches.notes == ("both models get images as the processor of MODEL makes them",)
    processor = DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 60}, **settings)
    for batch, name in zip(made(batches), ("a.png", "b.png"), strict=True):
        assert batch.case == str(folder / name)
        expected = processor.preprocess(Image.open(folder / name), return_tensors="np")
        assert np.array_equal(batch.model["pixel_values"], expected["pixel_values"])
        assert np.array_equal(batch.model["pixel_mask"], expected["pixel_mask"])
        assert batch.other.keys() == {spec.name for spec in inputs}
        if PIXELS in inputs:
            assert np.array_equal(batch.other["pixel_values"], expected["pixel_values"])
        else:
            resized = processor.preprocess(Image.open(folder / name), do_rescale=False, do_normalize=False, do_pad=False)
            assert np.array_equal(batch.other["pixel_values"][0], resized["pixel_values"][0].transpose(1, 2, 0))


def test_pictures_that_the_processor_pads(folder: Path) -> None:
    metadata = about(processor={"pad_size": {"height": 64, "width": 64}})
    batch = made(picture_batches(FakeSession(metadata=metadata), FakeSession([BYTES, SIZES]), [folder / "a.png"]))[0]
    assert batch.model["pixel_values"].shape == (1, 3, 64, 64)
    assert batch.model["pixel_mask"].sum() == batch.other["valid_sizes"].prod() < 64 * 64
    assert np.array_equal(batch.other["pixel_values"][0].any(axis=2), batch.model["pixel_mask"][0])
    with pytest.raises(ArtifactError, match=r"pads every picture to pad_size, and OTHER takes no padding; give --inputs"):
        made(picture_batches(FakeSession(metadata=metadata), FakeSession([PIXELS]), [folder]))


def test_pictures_that_are_refused(folder: Path) -> None:
    pair = FakeSession(metadata=about()), FakeSession()
    with pytest.raises(ImageError, match="nothing does not exist"):
        picture_batches(*pair, [folder / "nothing"])
    with pytest.raises(ImageError, match=r"notes.txt is not an image"):
        made(picture_batches(*pair, [folder / "a.png", folder / "notes.txt"]))
    with pytest.raises(ArtifactError, match="neither MODEL nor OTHER says how images are prepared"):
        picture_batches(FakeSession(), FakeSession(), [folder])
    grey = FakeSession([replace(PIXELS, shape=("batch", 1, "height", "width"))])
    with pytest.raises(ArtifactError, match="OTHER takes images of 1 channels, and pictures have 3; give --inputs"):
        picture_batches(pair[0], grey, [folder])


# ---- arrays -------------------------------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    given = {"pixel_values": random.normal(size=(2, 3, 20, 30)).astype(np.float32), "pixel_mask": np.ones((2, 20, 30), int)}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "in.npz", **arrays(**changes))
    return folder / "in.npz"


def test_arrays_are_fed_as_they_are(tmp_path: Path) -> None:
    mask = arrays()["pixel_mask"]
    mask[0, 7:] = 0
    batches = array_batches(FakeSession(), FakeSession([HALF, MASK]), saved(tmp_path, pixel_mask=mask))
    assert batches.notes == ()
    (batch,) = made(batches)
    assert batch.case == "in.npz"
    assert np.array_equal(batch.model["pixel_values"], arrays()["pixel_values"])
    assert np.array_equal(batch.other["pixel_values"], arrays()["pixel_values"].astype(np.float16))
    assert all(np.array_equal(side["pixel_mask"], mask) for side in (batch.model, batch.other))


def test_arrays_in_the_other_byte_order(tmp_path: Path) -> None:
    file = saved(tmp_path, pixel_values=arrays()["pixel_values"].astype(">f4"))
    (batch,) = made(array_batches(FakeSession(), FakeSession(), file))
    assert np.array_equal(FakeSession().run(batch.model)["logits"], FakeSession().run(arrays())["logits"])


def test_any_model_takes_arrays(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", "float32", ("n",)), TensorSpec("y", "bool", ("n",))]
    given = {"x": np.array([1.0, 2.0], np.float32), "y": np.array([True, False])}
    np.savez(tmp_path / "in.npz", **given)
    (batch,) = made(array_batches(FakeSession(inputs[:1]), FakeSession(inputs), tmp_path / "in.npz"))
    assert batch.model.keys() == {"x"}
    assert batch.other.keys() == {"x", "y"}


@pytest.mark.parametrize("swapped", [False, True])
def test_arrays_for_a_model_without_a_mask(tmp_path: Path, swapped: bool) -> None:
    pair: list[Session] = [FakeSession(), FakeSession([PIXELS])]
    label = "MODEL" if swapped else "OTHER"
    model, other = reversed(pair) if swapped else pair
    batches = array_batches(model, other, saved(tmp_path))
    assert batches.notes == (f"no image is padded, because {label} has no input pixel_mask or valid_sizes",)
    mask = arrays()["pixel_mask"]
    mask[1, :, 29] = 0
    with pytest.raises(ArtifactError, match=f"in.npz has padding, and {label} takes no pixel_mask; give images without"):
        array_batches(model, other, saved(tmp_path, pixel_mask=mask))


def test_arrays_for_models_of_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8)
    file = saved(tmp_path, pixel_values=images, pixel_mask=None, valid_sizes=np.array([[20, 30]]))
    (batch,) = made(array_batches(FakeSession([BYTES, SIZES]), FakeSession([BYTES]), file))
    assert np.array_equal(batch.other["pixel_values"], images)
    file = saved(tmp_path, pixel_values=images, pixel_mask=None, valid_sizes=np.array([[20, 29]]))
    with pytest.raises(ArtifactError, match="has padding, and OTHER takes no valid_sizes"):
        array_batches(FakeSession([BYTES, SIZES]), FakeSession([BYTES]), file)
    with pytest.raises(ArtifactError, match=r"pixel_values is float32 in MODEL and uint8 in OTHER, .*give --images"):
        array_batches(FakeSession([PIXELS, SIZES]), FakeSession([BYTES, SIZES]), file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_mask": None}, r"in.npz lacks pixel_mask; expected pixel_values, pixel_mask$"),
        ({"mask": np.ones(1)}, r"in.npz has mask; expected pixel_values, pixel_mask$"),
        ({"pixel_mask": None, "mask": np.ones(1)}, r"in.npz lacks pixel_mask and has mask; expected"),
        ({"pixel_values": np.zeros((2, 3, 20, 30))}, r"in.npz: pixel_values is float64; expected float32$"),
        ({"pixel_mask": np.ones((2, 20, 30), bool)}, r"in.npz: pixel_mask is bool; expected int64$"),
        (
            {"pixel_values": np.zeros((3, 20, 30), np.float32)},
            r"in.npz does not fit MODEL: pixel_values has shape \(3, 20, 30\)",
        ),
        ({"pixel_mask": np.ones((2, 20, 31), int)}, r"in.npz does not fit MODEL: pixel_mask has shape .* width=30"),
        ({"pixel_values": np.array([{}])}, r"in.npz is damaged or holds objects: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        array_batches(FakeSession(), FakeSession(), saved(tmp_path, **changes))


def test_a_range_of_other_is_named(tmp_path: Path) -> None:
    other = FakeSession(metadata=about(ranges={"height": (64, 128)}))
    with pytest.raises(InputError, match=r"in.npz does not fit OTHER: height is 20; this model takes 64 to 128"):
        array_batches(FakeSession(), other, saved(tmp_path))


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    import zipfile

    pair = FakeSession(), FakeSession()
    with pytest.raises(InputError, match=r"no.npz does not exist or is not a file; expected an .npz file"):
        array_batches(*pair, tmp_path / "no.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(InputError, match=r"one.npy is not an .npz file"):
        array_batches(*pair, tmp_path / "one.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("pixel_values.txt", "hello")
    with pytest.raises(InputError, match=r"text.npz holds pixel_values.txt, which is no array"):
        array_batches(*pair, tmp_path / "text.npz")
    file = saved(tmp_path)
    content = bytearray(file.read_bytes())
    content[2000] ^= 255
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"in.npz is damaged or holds objects: Bad CRC"):
        array_batches(*pair, file)
