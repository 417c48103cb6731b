"""Pictures of any shape: as transformers does it, in bands, or refused in words that name the rule."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.segmentation import post_process_semantic_segmentation
from detr_export.runtimes.results import drawing, segmentation
from detr_export.runtimes.results.segmentation import make_segmentation

SIZES = [(1, 1), (1, 2), (2, 5), (1, 50), (1, 1000), (1, 5000), (3, 1000), (2, 1333), (5, 5000), (4, 800), (7, 64)]
SIZES += [(height, width) for width, height in SIZES[1:]]
RULES = [{"shortest_edge": 800, "longest_edge": 1333}, {"shortest_edge": 64, "longest_edge": 96}]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _vanishes(width: int, height: int, rule: dict[str, int]) -> bool:
    """Whether the short side of a long picture rounds to nothing."""
    return round(rule["longest_edge"] * min(width, height) / max(width, height)) == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_thin_pictures_are_prepared_as_in_transformers(width: int, height: int, rule: dict[str, int]) -> None:
    from transformers import DetrImageProcessor as Oracle

    picture = noise(width, height)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = Oracle(size=rule)
        # transformers guesses the layout, unless it is told
        if _vanishes(width, height, rule):
            with pytest.raises(ValueError, match="height and width must be > 0"):
                oracle(picture, return_tensors="np", input_data_format="channels_last")
            told = rf"{width}x{height} pixels is too thin: by the rule shortest_edge \d+, longest_edge \d+ it would be"
            with pytest.raises(ImageError, match=told):
                DetrImageProcessor(size=rule)(picture, return_tensors="np")
            return
        expected = oracle(picture, return_tensors="np", input_data_format="channels_last")
    found = DetrImageProcessor(size=rule)(picture, return_tensors="np")
    assert np.array_equal(found["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (1, 90), (90, 1), (3, 1000), (5000, 1)])
def test_thin_pictures_are_predicted_or_refused(width: int, height: int, tiny_onnx: Path) -> None:
    with Predictor.load(tiny_onnx) as predictor:
        try:
            predictor.model_size((height, width))
        except ImageError:
            with pytest.raises(ImageError, match="is too thin: by the rule"):
                predictor.detect(noise(width, height))
            return
        found = predictor.detect(noise(width, height), threshold=0.0)
        assert found.image_size == (height, width)
        assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (70, 1), (37, 53), (64, 64), (101, 33)])
@pytest.mark.parametrize("band", [1, 7, 64, 500])
def test_bands_give_the_same_numbers(height: int, width: int, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(height * width)
    outputs = {
        "logits": generator.normal(size=(1, 12, 6)).astype(np.float32) * 4,
        "pred_masks": generator.normal(size=(1, 12, 9, 7)).astype(np.float32) * 4,
    }
    picture = noise(width, height)

    def results() -> tuple[bytes, ...]:
        (ids,) = post_process_semantic_segmentation(outputs, [(height, width)], dtype=np.int32)
        (wide,) = post_process_semantic_segmentation(outputs, [(height, width)])
        assert wide.dtype == np.int64
        assert np.array_equal(wide, ids)
        semantic = make_segmentation("semantic", ids, [], {})
        infos = [{"id": n, "label_id": n, "score": 0.5, "was_fused": False} for n in range(1, 6)]
        panoptic = make_segmentation("panoptic", ids - 1, infos, {n: str(n) for n in range(6)})
        kept = panoptic.of_classes(["1", "3"])
        assert np.array_equal(kept.map, np.where(np.isin(panoptic.map, [1, 3]), panoptic.map, 0))
        png = np.asarray(panoptic.panoptic_png()).astype(int)
        assert np.array_equal(png @ [1, 256, 65536], panoptic.map)
        return (
            semantic.draw(picture).tobytes(), panoptic.draw(picture).tobytes(), kept.map.tobytes(),
            repr((semantic.to_dict(), panoptic.to_dict())).encode(),
        )  # fmt: skip

    whole = results()
    monkeypatch.setattr(drawing, "_BAND_PIXELS", band)
    assert segmentation.bands(np.empty((height, width)))[0].stop == max(1, band // width)
    assert results() == whole


@pytest.mark.parametrize("seed", range(20))
def test_the_middle_of_a_mask_is_exact(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 90, 2)) < 0.3
    mask[0, 0] = True
    rows, columns = np.nonzero(mask)
    assert drawing._mean(mask.sum(axis=1)) == rows.mean()
    assert drawing._mean(mask.sum(axis=0)) == columns.mean()
