"""From image to result: against transformers end to end, and one backend against the other."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes import Detections, DetrImageProcessor, DetrImageProcessorFast, Predictor
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError, BackendError, ImageError, InputError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec

SCORE_ATOL = 1e-4
BOX_ATOL = 1e-4  # times the longer side of the image


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx) as opened:
        yield opened


@pytest.fixture(scope="module")
def maskless(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    file = tmp_path_factory.mktemp("maskless") / "maskless.onnx"
    export_onnx(load_checkpoint(tiny_checkpoint), file, ExportOptions(pixel_mask=False, simplify=False, verify=False))
    with Predictor.load(file) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(photo: Path) -> list[Image.Image]:
    """The photograph and parts of it: landscape, portrait, square, tiny, a line."""
    whole = Image.open(photo).convert("RGB")
    boxes = [(0, 0, 640, 427), (30, 40, 230, 400), (100, 100, 300, 300), (5, 5, 6, 6), (0, 50, 640, 53)]
    return [whole.crop(box) for box in boxes]


@torch.no_grad()
def oracle_detections(directory: Path, images: list[Image.Image], threshold: float) -> list[dict[str, np.ndarray]]:
    processor = transformers.DetrImageProcessor.from_pretrained(directory)
    model = transformers.DetrForObjectDetection.from_pretrained(directory).eval()
    outputs = model(**processor(images, return_tensors="pt"))
    sizes = [(image.height, image.width) for image in images]
    found = processor.post_process_object_detection(outputs, threshold, sizes)
    return [{name: value.numpy() for name, value in item.items()} for item in found]


def assert_same(given: Detections, scores: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> None:
    assert given.labels.tolist() == labels.tolist()
    assert np.abs(given.scores - scores).max(initial=0) <= SCORE_ATOL
    assert np.abs(given.boxes - boxes).max(initial=0) <= BOX_ATOL * max(given.image_size)
    assert (given.scores.dtype, given.labels.dtype, given.boxes.dtype) == (np.float32, np.int64, np.float32)


# ---- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_same_detections_as_transformers(
    threshold: float, predictor: Predictor, tiny_checkpoint: Path, pictures: list[Image.Image]
) -> None:
    """One padded batch of five sizes."""
    expected = oracle_detections(tiny_checkpoint, pictures, threshold)
    everything = np.concatenate([item["scores"] for item in oracle_detections(tiny_checkpoint, pictures, 0.0)])
    assert np.abs(everything - threshold).min() > SCORE_ATOL  # or rounding would decide what is found
    given = predictor.detect(pictures, threshold, clip=False)
    for found, wanted, picture in zip(given, expected, pictures, strict=True):
        assert_same(found, wanted["scores"], wanted["labels"], wanted["boxes"])
        assert found.image_size == (picture.height, picture.width)
        assert found.names == tuple(predictor.id2label[label] for label in wanted["labels"].tolist())
    assert threshold > 0 or all(len(found) == 9 for found in given)


def test_same_detections_on_the_photograph(predictor: Predictor, tiny_checkpoint: Path, photo: Path) -> None:
    (expected,) = oracle_detections(tiny_checkpoint, [Image.open(photo)], 0.0)
    assert_same(predictor.detect(photo, 0.0, clip=False), expected["scores"], expected["labels"], expected["boxes"])


def test_torch_and_onnx_agree(predictor: Predictor, tiny_checkpoint: Path, pictures: list[Image.Image]) -> None:
    with Predictor.load(tiny_checkpoint) as reference:
        assert isinstance(reference.session, TorchSession)
        for given, wanted in zip(
            predictor.detect(pictures, 0.0, clip=False), reference.detect(pictures, 0.0, clip=False), strict=True
        ):
            assert_same(given, wanted.scores, wanted.labels, wanted.boxes)


def test_pictures_differ(predictor: Predictor, pictures: list[Image.Image]) -> None:
    """Or agreement above would prove little."""
    first, second = predictor.detect(pictures[:2], 0.0)
    assert np.abs(first.scores - second.scores).max() > 100 * SCORE_ATOL


def test_the_order_of_a_batch_plays_no_part(predictor: Predictor, pictures: list[Image.Image]) -> None:
    forward, backward = predictor.detect(pictures, 0.0), predictor.detect(pictures[::-1], 0.0)
    for given, wanted in zip(backward[::-1], forward, strict=True):
        assert_same(given, wanted.scores, wanted.labels, wanted.boxes)


def test_without_a_mask_sizes_run_apart(maskless: Predictor, predictor: Predictor, pictures: list[Image.Image]) -> None:
    mixed = [pictures[0], pictures[2], pictures[0], pictures[1]]
    given = maskless.detect(mixed, 0.0)
    for found, picture in zip(given, mixed, strict=True):
        wanted = predictor.detect(picture, 0.0)  # alone it has no padding
        assert_same(found, wanted.scores, wanted.labels, wanted.boxes)


@pytest.mark.parametrize("name", ["predictor", "maskless"])
def test_eight_threads_give_the_same_results(name: str, pictures: list[Image.Image], request: pytest.FixtureRequest) -> None:
    shared: Predictor = request.getfixturevalue(name)
    work = pictures[:3] * 8
    expected = [shared.detect(picture, 0.0) for picture in work]
    with ThreadPoolExecutor(8) as pool:
        for given, wanted in zip(pool.map(lambda picture: shared.detect(picture, 0.0), work), expected, strict=True):
            assert np.array_equal(given.boxes, wanted.boxes)
            assert np.array_equal(given.scores, wanted.scores)


# ---- what an image may be -----------------------------------------------------------------------------------------------


def test_every_kind_of_source(predictor: Predictor, photo: Path) -> None:
    image = Image.open(photo).convert("RGB")
    expected = predictor.detect(image, 0.0)
    for source in (photo, str(photo), photo.read_bytes(), np.array(image)):
        given = predictor.detect(source, 0.0)
        assert isinstance(given, Detections)
        assert np.array_equal(given.boxes, expected.boxes)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists(kind: type, predictor: Predictor, photo: Path) -> None:
    given = predictor.detect(kind([photo, photo.read_bytes()]), 0.0)
    assert isinstance(given, list)
    assert np.array_equal(given[0].boxes, given[1].boxes)
    assert predictor.detect(kind([])) == []
    assert len(predictor.detect(kind([photo]))) == 1


def test_grey_palette_alpha_and_turned_images(predictor: Predictor, photo: Path) -> None:
    image = Image.open(photo)
    for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
        changed = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
        assert predictor.detect(changed).image_size == (427, 640)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(stream, "JPEG", exif=exif)
    assert predictor.detect(stream.getvalue()).image_size == (640, 427)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "the image bytes are empty"),
        (b"hello", "is not an image that Pillow reads"),
        ("nothing.jpg", "nothing.jpg does not exist"),
        (3, "cannot read an image from int"),
        (None, "cannot read an image from NoneType"),
        (np.zeros((4, 4)), "is not an RGB image"),
        ((photo for photo in ()), "cannot read an image from generator"),
        ([b""], "the image bytes are empty"),
        ([["a.jpg"]], "cannot read an image from list"),
    ],
)
def test_refuses_sources(source: object, message: str, predictor: Predictor) -> None:
    with pytest.raises(ImageError, match=message):
        predictor.detect(source)  # type: ignore[call-overload]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_refuses_thresholds(threshold: float, predictor: Predictor, photo: Path) -> None:
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        predictor.detect(photo, threshold)


# ---- models that are not for it -----------------------------------------------------------------------------------------


def edited(source: Path, target: Path, **properties: str) -> Path:
    """A copy of a model with other metadata."""
    model = onnx.load(str(source))
    del model.metadata_props[:]
    helper.set_model_props(model, properties)
    onnx.save_model(model, str(target))
    return target


def test_an_onnx_file_of_something_else(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"a.onnx is not a DETR: it maps x to y; expected pixel_values"):
        Predictor.load(tmp_path / "a.onnx")


def test_a_detr_without_metadata(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no detr-export metadata .*; export it with: detr-export onnx"):
        Predictor.load(edited(tiny_onnx, tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    "processor", [{"size": "big"}, {"image_processor_type": "YolosImageProcessor"}, {"resample": 99}, {"size": {"depth": 1}}]
)
def test_image_settings_that_are_none(processor: dict, tiny_onnx: Path, predictor: Predictor, tmp_path: Path) -> None:
    text = replace(predictor.metadata, processor=processor).to_json()
    with pytest.raises(ArtifactError, match=r"the file's image settings are not usable: .*; export it again"):
        Predictor.load(edited(tiny_onnx, tmp_path / "a.onnx", detr_export=text))


def test_image_settings_that_fail_later(tiny_checkpoint: Path, tmp_path: Path, photo: Path) -> None:
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_std": [1, 1]}))
    with (
        Predictor.load(directory) as broken,
        pytest.raises(ArtifactError, match=r"image settings are not usable: .*image_std"),
    ):
        broken.detect(photo)


class FourChannels(Session):
    """A DETR that a Predictor cannot feed."""

    inputs = (TensorSpec("pixel_values", "float32", ("batch", 4, "height", "width")),)
    outputs = (TensorSpec("logits", "float32", ("batch", 1, 2)), TensorSpec("pred_boxes", "float32", ("batch", 1, 4)))
    metadata = Metadata("detection", {0: "thing"}, {}, False)
    closed = False

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}

    def close(self) -> None:
        self.closed = True


def test_other_channels() -> None:
    with pytest.raises(ArtifactError, match="takes images of 4 channels; a Predictor feeds RGB"):
        Predictor(FourChannels())


def test_a_refused_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FourChannels()
    monkeypatch.setattr("detr_export.runtimes.predictor.open_session", lambda *args, **options: session)
    with pytest.raises(ArtifactError):
        Predictor.load("a.onnx")
    assert session.closed


def test_an_image_outside_of_the_ranges(tiny_onnx: Path, predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    text = replace(predictor.metadata, ranges={"width": (1, 100)}).to_json()
    with (
        Predictor.load(edited(tiny_onnx, tmp_path / "a.onnx", detr_export=text)) as narrow,
        pytest.raises(InputError, match="width is 143; this model takes 1 to 100"),
    ):
        narrow.detect(photo)


# ---- other processes ----------------------------------------------------------------------------------------------------


def test_a_pickled_predictor_opens_its_file_again(tiny_onnx: Path, photo: Path) -> None:
    with Predictor.load(tiny_onnx, threads=1, spinning=False) as predictor:
        expected = predictor.detect(photo, 0.0)
        content = pickle.dumps(predictor)
    assert len(content) < 1000
    with pickle.loads(content) as again:
        assert again.detect(photo, 0.0) == expected
        assert pickle.dumps(again) == content
    with pytest.raises(InputError, match=r"around an open session cannot be pickled; open its file with Predictor\.load"):
        pickle.dumps(Predictor(again.session))


def test_a_pickled_predictor_whose_file_is_gone(tiny_onnx: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(tiny_onnx, tmp_path / "a.onnx"))
    with Predictor.load(file) as predictor:
        content = pickle.dumps(predictor)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"a\.onnx"):
        pickle.loads(content)


# ---- results ------------------------------------------------------------------------------------------------------------

DETECTIONS = Detections(
    scores=np.array([0.9, 0.6], np.float32),
    labels=np.array([3, 1]),
    boxes=np.array([[1, 2, 11, 22], [-5, -5, 700, 500]], np.float32),
    names=("car", "person"),
    image_size=(427, 640),
)


def test_to_dict() -> None:
    document = json.loads(json.dumps(DETECTIONS.to_dict()))
    assert document["image_size"] == [427, 640]
    assert document["detections"][0] == {
        "label": 3,
        "name": "car",
        "score": pytest.approx(0.9),
        "box": [1.0, 2.0, 11.0, 22.0],
    }
    assert len(document["detections"]) == len(DETECTIONS) == 2


def test_to_coco() -> None:
    entries = json.loads(json.dumps(DETECTIONS.to_coco(17)))
    assert entries[0] == {"image_id": 17, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.0], "score": pytest.approx(0.9)}
    assert entries[1]["bbox"] == [-5.0, -5.0, 705.0, 505.0]


def test_draw_marks_a_copy(photo: Path) -> None:
    image = Image.open(photo).convert("RGB")
    before = image.tobytes()
    drawn = DETECTIONS.draw(image)
    assert image.tobytes() == before
    assert drawn.size == image.size
    changed = np.argwhere(np.any(np.array(drawn) != np.array(image), axis=2))
    assert len(changed) > 50
    assert np.array_equal(np.array(drawn)[300, 300], np.array(image)[300, 300])  # inside the boxes nothing is painted


def test_draw_refuses_another_image(photo: Path) -> None:
    with pytest.raises(ImageError, match="the image is 10x20; the prediction is for an image of 427x640"):
        DETECTIONS.draw(np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(ImageError, match=r"nothing.png does not exist"):
        DETECTIONS.draw("nothing.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7)])
def test_draw_on_extreme_sizes(size: tuple[int, int]) -> None:
    box = np.array([[0, 0, size[1], size[0]]], np.float32)
    found = Detections(np.ones(1, np.float32), np.array([2]), box, ("Käse \N{CHEESE WEDGE}",), size)
    assert found.draw(np.zeros((*size, 3), np.uint8)).size == size[::-1]


def test_draw_nothing(photo: Path) -> None:
    none = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), (), (427, 640))
    assert none.draw(photo).tobytes() == Image.open(photo).convert("RGB").tobytes()
    assert none.to_dict()["detections"] == none.to_coco(1) == []


# ---- closing ------------------------------------------------------------------------------------------------------------


def test_a_closed_predictor(tiny_onnx: Path, photo: Path) -> None:
    with Predictor.load(tiny_onnx) as closed:
        pass
    closed.close()
    with pytest.raises(BackendError, match="the session is closed"):
        closed.detect(photo)


def test_the_processor_is_the_one_that_the_settings_name(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session:
        assert session.metadata is not None
        assert type(Predictor(session).processor) is DetrImageProcessor
        fast = {**session.metadata.processor, "image_processor_type": "DetrImageProcessorFast"}
        session.metadata = replace(session.metadata, processor=fast)
        assert type(Predictor(session).processor) is DetrImageProcessorFast
