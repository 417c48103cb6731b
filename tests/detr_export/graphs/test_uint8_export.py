"""Files that start from uint8 images: against the processor and the checkpoint, and through the Predictor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs import tracing
from detr_export.graphs.export import ExportOptions, ExportResult, export_onnx, verify_file
from detr_export.modeling.deployed import Uint8Model
from detr_export.runtimes import ArtifactError, DetrImageProcessor, Predictor
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.transforms import LAST
from detr_export.verification.cases import GRID, Case, make_feeds, make_images
from tests import models

CASE = Case(90, 130, ((90, 130), (61, 130), (90, 17), (1, 1)))


@pytest.fixture(scope="module")
def images_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector, taking uint8 images; verified."""
    output = tmp_path_factory.mktemp("uint8") / "images.onnx"
    result = export_onnx(load_checkpoint(tiny_checkpoint), output, ExportOptions(input="uint8"))
    assert result.parity is not None
    assert result.parity.cases == len(GRID)
    assert not result.parity.weak
    assert set(result.parity.noise_floor) == {"logits", "pred_boxes"}
    return output


class _Pixels(torch.nn.Module):
    """Gives back what the model below a `Uint8Model` is given."""

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        mask = torch.ones_like(pixel_values[:, 0], dtype=torch.bool) if pixel_mask is None else pixel_mask
        return {"pixel_values": pixel_values, "pixel_mask": mask}


@pytest.mark.parametrize(
    "processor",
    [
        DetrImageProcessor(),
        DetrImageProcessorFast(),
        DetrImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[1.5, 0.2, 0.7], rescale_factor=1 / 127),
        DetrImageProcessor(do_normalize=False),
        DetrImageProcessor(do_rescale=False, image_mean=[120.0, 110.0, 100.0], image_std=[60.0, 61.0, 62.0]),
    ],
    ids=["default", "fast", "other values", "rescaled only", "normalised only"],
)
def test_scales_and_pads_as_the_processor(processor: DetrImageProcessor) -> None:
    """Within two roundings of float32."""
    model = Uint8Model(
        _Pixels(),  # type: ignore[arg-type]
        processor.rescale_factor if processor.do_rescale else None,
        processor.image_mean if processor.do_normalize else None,
        processor.image_std if processor.do_normalize else None,
    )
    given = make_images(CASE, seed=1)
    images = [image[:height, :width] for image, (height, width) in zip(given["pixel_values"], CASE.valid, strict=True)]
    expected = processor.preprocess(images, do_resize=False, input_data_format=LAST, return_tensors="np")
    found = model(**{name: torch.from_numpy(array) for name, array in given.items()})
    assert np.array_equal(found["pixel_mask"].numpy(), expected["pixel_mask"].astype(bool))
    scale = np.abs(expected["pixel_values"]).max()
    assert np.abs(found["pixel_values"].numpy() - expected["pixel_values"]).max() <= 4 * np.finfo(np.float32).eps * scale
    assert not found["pixel_values"].numpy()[expected["pixel_mask"][:, None].repeat(3, 1) == 0].any()
    assert model(torch.from_numpy(given["pixel_values"]))["pixel_mask"].all()  # no sizes: all is image


def test_what_a_file_takes(images_onnx: Path) -> None:
    with OrtSession(images_onnx) as session:
        assert [str(spec) for spec in session.inputs] == [
            "pixel_values uint8 (batch, height, width, 3)",
            "valid_sizes int64 (batch, 2)",
        ]
        assert session.metadata is not None
        assert (session.metadata.input, session.metadata.pixel_mask) == ("uint8", True)
    graph = onnx.load(images_onnx).graph
    assert [node.op_type for node in graph.node if "pixel_values" in node.input] == ["Cast"]


def test_padding_does_not_matter(images_onnx: Path) -> None:
    with OrtSession(images_onnx) as session:
        given = make_images(CASE, seed=2)
        black = given["pixel_values"].copy()
        for image, (height, width) in zip(black, CASE.valid, strict=True):
            image[height:], image[:, width:] = 0, 0
        assert (black != given["pixel_values"]).any()
        noisy, clean = session.run(given), session.run({**given, "pixel_values": black})
        for name in noisy:
            assert np.array_equal(noisy[name], clean[name])
        smaller = session.run({**given, "valid_sizes": np.maximum(given["valid_sizes"] // 2, 1)})
        assert np.abs(smaller["logits"] - noisy["logits"]).max() > 0.5  # the sizes are used


def test_verification_again(images_onnx: Path, tiny_checkpoint: Path) -> None:
    assert verify_file(images_onnx, tiny_checkpoint).passed


def test_the_checkpoint_gets_what_the_processor_makes(images_onnx: Path) -> None:
    with OrtSession(images_onnx) as session:
        about = session.metadata
    assert about is not None
    feeds = make_feeds(CASE, 3, about, seed=3)
    given, original = feeds.file, feeds.checkpoint
    assert set(given) == {"pixel_values", "valid_sizes"}
    assert original["pixel_values"].shape == (4, 3, 90, 130)
    assert original["pixel_mask"].sum() == sum(height * width for height, width in CASE.valid)
    assert original["pixel_values"].std() > 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_predictor(threshold: float, images_onnx: Path, tiny_checkpoint: Path, photo: Path) -> None:
    """One padded batch of several sizes, against the checkpoint."""
    from PIL import Image

    image = Image.open(photo)
    pictures = [image, image.resize((100, 180)), image.crop((100, 30, 260, 200))]
    with Predictor.load(images_onnx) as predictor, Predictor.load(tiny_checkpoint) as checkpoint:
        found, expected = (
            predictor.detect(pictures, threshold, clip=False),
            checkpoint.detect(pictures, threshold, clip=False),
        )
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        assert np.array_equal(one.labels, other.labels)
        assert np.abs(one.scores - other.scores).max() < 1e-3
        assert np.abs(one.boxes - other.boxes).max() < 1e-4 * max(image.size)


def test_fp16_panoptic(fp16_images: ExportResult, segmenter: Path, photo: Path) -> None:
    """fp16 with fp16 outputs, uint8 images and masks together."""
    assert fp16_images.parity is not None
    assert fp16_images.fp16 is not None
    assert fp16_images.fp16.rounded is not None
    assert set(fp16_images.parity.noise_floor) == {"logits", "pred_boxes", "pred_masks"}
    with OrtSession(fp16_images.path) as session:
        assert [spec.dtype for spec in session.inputs] == ["uint8", "int64"]
        assert {spec.dtype for spec in session.outputs} == {"float16"}
        assert session.metadata is not None
        assert (session.metadata.precision, session.metadata.input) == ("fp16", "uint8")
    assert verify_file(fp16_images.path, segmenter).passed
    with Predictor.load(fp16_images.path) as predictor, Predictor.load(segmenter) as checkpoint:
        (one_found, _), (other_found, _) = (each.detect_and_segment(photo, 0.0) for each in (predictor, checkpoint))
        assert one_found.masks is not None
        assert other_found.masks is not None
        assert (one_found.masks != other_found.masks).mean() < 0.02
        assert 0.02 < other_found.masks.mean() < 0.98
        assert one_found.scores.dtype == np.float32
        assert np.abs(one_found.scores - other_found.scores).max() < 0.05


def test_without_sizes(tiny_checkpoint: Path, tmp_path: Path, photo: Path) -> None:
    options = ExportOptions(input="uint8", pixel_mask=False)
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", options).path
    with OrtSession(file) as session:
        assert [spec.name for spec in session.inputs] == ["pixel_values"]
    with Predictor.load(file) as predictor, Predictor.load(tiny_checkpoint) as checkpoint:
        one, other = predictor.detect(photo, 0.0, clip=False), checkpoint.detect(photo, 0.0, clip=False)
    assert np.abs(one.boxes - other.boxes).max() < 0.1


def test_refuses_other_channels(tmp_path: Path) -> None:
    config = models.config(backbone="resnet18", num_channels=1)
    folder = tmp_path / "checkpoint"
    models.seeded(config).save_pretrained(folder, DetrImageProcessor())
    with pytest.raises(ArtifactError, match="takes images of 1 channels, and uint8 images are RGB; use --input float"):
        export_onnx(load_checkpoint(folder), tmp_path / "a.onnx", ExportOptions(input="uint8"))


def test_older_metadata_means_float(images_onnx: Path) -> None:
    with OrtSession(images_onnx) as session:
        assert session.metadata is not None
        document = json.loads(session.metadata.to_json())
    del document["input"]
    assert Metadata.from_json(json.dumps(document)).input == "float"


def test_only_the_cast_reads_the_input() -> None:
    """The sizes of the images come from their float copy."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Shape", ["pixel_values"], ["sizes"]),
        helper.make_node("Cast", ["pixel_values"], ["floats"], to=onnx.TensorProto.FLOAT),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    tracing._measure_after_cast(model)
    assert [(node.op_type, *node.input) for node in model.graph.node] == [("Cast", "pixel_values"), ("Shape", "floats")]
