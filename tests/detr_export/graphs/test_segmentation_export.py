"""Segmentation checkpoints from file to file to result, against transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_export import coco
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import DetrConfig
from detr_export.graphs.export import ExportOptions, export_onnx, verify_file
from detr_export.loading import load_model
from detr_export.modeling.detr import DetrForObjectDetection, DetrModel
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import ArtifactError, CheckpointError, Predictor
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.opening import open_session
from detr_export.seeding import random_images, seed_weights
from tests import models

HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
KEYS = Path(__file__).parents[2] / "data"


def segmentation_model(seed: int = 0) -> DetrForSegmentation:
    model = DetrForSegmentation(models.config(**HEADS))
    seed_weights(model, seed)
    return model


def oracle_of(model: DetrForSegmentation) -> Any:
    import transformers

    values = {**model.config.to_dict(), "use_pretrained_backbone": False}
    theirs = transformers.DetrForSegmentation(transformers.DetrConfig.from_dict(values))
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation checkpoint written by transformers, its stuff classes named."""
    folder = models.save_checkpoint(oracle_of(segmentation_model()), tmp_path_factory.mktemp("segmentation") / "tiny")
    models.edit_config(folder, label_ids_to_fuse=[3, 4])
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """The checkpoint with masks and attention, exported and verified."""
    output = checkpoint.parent / "tiny.onnx"
    result = export_onnx(load_checkpoint(checkpoint), output, ExportOptions(attentions=True))
    assert result.parity is not None
    assert set(result.parity.max_abs_diff) == {"logits", "pred_boxes", "pred_masks", "cross_attention"}
    assert result.metadata.task == "segmentation"
    assert result.metadata.label_ids_to_fuse == (3, 4)
    return output


@pytest.mark.parametrize("shape", [(1, 77, 131), (3, 160, 96), (2, 225, 225)], ids=str)
def test_file_has_the_numbers_of_transformers(exported: Path, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    mask = np.ones(shape, dtype=np.int64)
    mask[-1, height // 2 :], mask[-1, :, width - 9 :] = 0, 0
    pixels = random_images((batch, 3, height, width), seed=height) * mask[:, None].astype(np.float32)
    with open_session(exported) as session:
        outputs = session.run({"pixel_values": pixels, "pixel_mask": mask})
    with torch.no_grad():
        theirs = oracle_of(segmentation_model())
        expected = theirs(torch.from_numpy(pixels), torch.from_numpy(mask), output_attentions=True)
    assert outputs["pred_masks"].shape == tuple(expected.pred_masks.shape)
    assert np.abs(outputs["pred_masks"] - expected.pred_masks.numpy()).max() <= 1e-3
    assert np.abs(outputs["logits"] - expected.logits.numpy()).max() <= 1e-3
    attention = expected.cross_attentions[-1].numpy()
    assert np.abs(outputs["cross_attention"].reshape(attention.shape) - attention).max() <= 1e-3
    assert outputs["cross_attention"].shape[3:] == (-(-height // 32), -(-width // 32))


def test_a_segmentation_checkpoint_gives_its_detector(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    result = export_onnx(loaded, tmp_path / "detector.onnx", ExportOptions(task="detection", pixel_mask=False))
    assert result.metadata.task == "detection"
    with OrtSession(result.path) as session:
        assert [spec.name for spec in session.outputs] == ["logits", "pred_boxes"]
        pixels = random_images((2, 3, 90, 70), seed=2)
        given = session.run({"pixel_values": pixels})
    with torch.no_grad():
        expected = segmentation_model()(torch.from_numpy(pixels))
    assert np.abs(given["logits"] - expected.logits.numpy()).max() <= 1e-3


def test_models_take_their_part_of_a_checkpoint(checkpoint: Path, tiny_checkpoint: Path) -> None:
    whole = segmentation_model()
    for kind, part in ((DetrForSegmentation, whole), (DetrForObjectDetection, whole.detr), (DetrModel, whole.detr.model)):
        model = kind.from_pretrained(checkpoint)
        assert type(model) is kind
        assert not model.training
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in model.state_dict().items())
    assert isinstance(DetrModel.from_pretrained(tiny_checkpoint), DetrModel)
    assert isinstance(load_model(load_checkpoint(checkpoint)), DetrForSegmentation)


def test_saving_is_reading(tmp_path: Path) -> None:
    import transformers

    model = segmentation_model(seed=3)
    model.save_pretrained(tmp_path)
    theirs = transformers.DetrForSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert transformers.DetrImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 800, "longest_edge": 1333}


def test_refuses_tasks_that_a_checkpoint_cannot_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    with pytest.raises(CheckpointError, match="has no mask head; expected a segmentation checkpoint"):
        export_onnx(loaded, tmp_path / "a.onnx", ExportOptions(task="segmentation"))
    with pytest.raises(CheckpointError, match="task is 'panoptic'; expected one of detection, segmentation"):
        load_model(loaded, "panoptic")


def test_published_panoptic_checkpoints_fit() -> None:
    """Names and shapes of the hub's panoptic checkpoint, and of the original one after conversion, are our model's."""
    from detr_export.checkpoints.original import convert

    ours = {
        name: list(value.shape)
        for name, value in DetrForSegmentation(DetrConfig(id2label=coco.id2label(250))).state_dict().items()
    }
    published = json.loads(gzip.decompress((KEYS / "transformers_keys.json.gz").read_bytes()))["detr-resnet-50-panoptic"]
    assert ours == published
    original = json.loads(gzip.decompress((KEYS / "facebookresearch_keys.json.gz").read_bytes()))["detr_resnet50_panoptic"]
    config, converted = convert({name: torch.empty(shape) for name, shape in original.items()}, None, None)
    assert {name: list(value.shape) for name, value in converted.items()} == ours
    assert config.num_labels == 250


def test_verification_again(exported: Path, checkpoint: Path) -> None:
    assert verify_file(exported, checkpoint).passed


@pytest.mark.parametrize("kind", ["checkpoint", "exported"])
def test_predictor_segments_as_transformers(kind: str, request: pytest.FixtureRequest, photo: Path) -> None:
    import transformers
    from PIL import Image

    theirs = transformers.DetrImageProcessor(size=models.SIZE)
    image = Image.open(photo)
    inputs = theirs(image, return_tensors="pt")
    with torch.no_grad():
        outputs = oracle_of(segmentation_model())(**inputs)
    sizes = [(image.height, image.width)]
    with Predictor.load(request.getfixturevalue(kind)) as predictor:
        semantic = predictor.segment_semantic(photo)
        instances = predictor.segment_instances(photo, threshold=0.2, overlap_mask_area_threshold=0.0)
        panoptic = predictor.segment_panoptic(photo, threshold=0.2, overlap_mask_area_threshold=0.0)
        both = predictor.segment_panoptic([image, image.resize((300, 500))], threshold=0.2, overlap_mask_area_threshold=0.0)
    expected = theirs.post_process_semantic_segmentation(outputs, sizes)[0].numpy()
    assert (semantic.map != expected).mean() < 1e-3
    expected = theirs.post_process_instance_segmentation(outputs, 0.2, overlap_mask_area_threshold=0.0, target_sizes=sizes)[
        0
    ]
    assert (instances.map != np.maximum(expected["segmentation"].numpy(), 0)).mean() < 1e-3
    labels = {info["id"]: info["label_id"] for info in expected["segments_info"]}
    assert {segment.id: segment.label for segment in instances.segments} == labels
    assert len(both) == 2
    assert (both[0].map == panoptic.map).mean() > 0.999
    assert both[1].image_size == (500, 300)
    ids = [segment.id for segment in panoptic.segments]
    assert len(set(ids)) == len(ids) > 0
    fused = [segment.label for segment in panoptic.segments if segment.was_fused]
    assert len(set(fused)) == len(fused)
    assert set(fused) <= {3, 4}
    assert sum(segment.area for segment in panoptic.segments) == (panoptic.map > 0).sum()
    assert panoptic.draw(photo).size == image.size


def test_maps_never_cover_padding(exported: Path, photo: Path) -> None:
    with Predictor.load(exported) as predictor:
        predictor.processor.pad_size = {"height": 200, "width": 200}
        assert len(predictor.detect(photo, threshold=0.0)) == 9  # boxes are relative to the image itself
        with pytest.raises(ArtifactError, match="its maps would cover the padding"):
            predictor.segment_semantic(photo)


def test_explanations(exported: Path, photo: Path, tiny_onnx: Path) -> None:
    with Predictor.load(exported) as predictor:
        detections, attention = predictor.explain(photo, threshold=0.3)
        found = predictor.detect(photo, threshold=0.3)
    assert np.array_equal(detections.scores, found.scores)
    assert attention.shape == (len(found), 3, 5)  # 96 x 144 pixels at stride 32
    assert np.allclose(attention.sum((1, 2)), 1, atol=1e-4)
    assert len(found) > 0
    assert detections.draw_attention(photo, attention, columns=2, cell_width=100).width in (100, 200)
    with Predictor.load(tiny_onnx) as predictor:
        with pytest.raises(ArtifactError, match="does not return its attention; export it with"):
            predictor.explain(photo)
        with pytest.raises(ArtifactError, match="draws no masks"):
            predictor.segment_panoptic(photo)


def test_fresh_models_and_pretrained_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented ways to make a model: all fresh, and a fresh transformer on a pretrained backbone."""
    import timm

    asked = []
    original = timm.create_model

    def create_model(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append((name, pretrained))
        torch.manual_seed(11)
        return original(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    config = models.config(backbone="resnet18", use_pretrained_backbone=False)
    fresh = DetrForObjectDetection.from_config(config)
    assert asked == []
    assert float(fresh.class_labels_classifier.weight.detach().std()) == pytest.approx(config.init_std, rel=0.3)
    pretrained = DetrForObjectDetection.from_config(models.config(backbone="resnet18", use_pretrained_backbone=True))
    assert asked == [("resnet18", True)]
    torch.manual_seed(11)
    weights = original("resnet18", pretrained=False, features_only=True).state_dict()
    loaded = pretrained.model.backbone.conv_encoder.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    with pytest.raises(CheckpointError, match="no_timm backbone has no pretrained weights"):
        DetrForObjectDetection.from_config(models.config(use_pretrained_backbone=True))
