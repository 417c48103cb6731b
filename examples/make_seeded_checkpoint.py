"""Makes a DETR checkpoint with seeded weights: the architecture of facebook/detr-resnet-50, nothing learned.

    python examples/make_seeded_checkpoint.py DIRECTORY [--panoptic]

With --panoptic, that of facebook/detr-resnet-50-panoptic.

It stands in for a trained checkpoint where none can be downloaded: everything runs on it as on the real one, and what it
detects means nothing.
"""

from __future__ import annotations

import argparse

from detr_export import coco
from detr_export.config import DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import DetrImageProcessor
from detr_export.seeding import seed_weights

SEED = 0


def main(directory: str, panoptic: bool) -> None:
    """Writes the checkpoint into `directory`."""
    kind = DetrForSegmentation if panoptic else DetrForObjectDetection
    labels = coco.id2label(coco.PANOPTIC_LABELS if panoptic else coco.DETECTION_LABELS)
    model = kind(DetrConfig(use_pretrained_backbone=False, id2label=labels))
    seed_weights(model, SEED)
    print(model.save_pretrained(directory, DetrImageProcessor(format="coco_panoptic" if panoptic else "coco_detection")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--panoptic", action="store_true")
    arguments = parser.parse_args()
    main(arguments.directory, arguments.panoptic)
