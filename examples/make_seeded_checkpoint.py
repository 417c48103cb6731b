"""Makes a DETR checkpoint with seeded weights: the architecture of facebook/detr-resnet-50, nothing learned.

    python examples/make_seeded_checkpoint.py DIRECTORY

It stands in for a trained checkpoint where none can be downloaded: everything runs on it as on the real one, and what it
detects means nothing.
"""

from __future__ import annotations

import sys

from detr_export import coco
from detr_export.config import DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.saving import save_checkpoint
from detr_export.seeding import seed_weights
from runtimes import DetrImageProcessor

SEED = 0


def main(directory: str) -> None:
    """Writes the checkpoint into `directory`."""
    model = DetrForObjectDetection(DetrConfig(use_pretrained_backbone=False, id2label=coco.id2label(coco.DETECTION_LABELS)))
    seed_weights(model, SEED)
    print(save_checkpoint(model, DetrImageProcessor(), directory))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_seeded_checkpoint.py DIRECTORY")
    main(sys.argv[1])
