"""Makes a DETR checkpoint with seeded weights: the architecture of facebook/detr-resnet-50, nothing learned.

    python examples/make_seeded_checkpoint.py DIRECTORY [--panoptic]

With --panoptic, it has the architecture of facebook/detr-resnet-50-panoptic.

It stands in for a trained checkpoint where none can be downloaded: everything runs on it as on the trained one, and what it
detects means nothing.
"""

from __future__ import annotations

import argparse

from detr_export.seeding import write_seeded_checkpoint

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="the folder to write")
    parser.add_argument("--panoptic", action="store_true", help="make a segmentation model")
    arguments = parser.parse_args()
    print(write_seeded_checkpoint(arguments.directory, arguments.panoptic))
