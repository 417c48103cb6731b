"""Training: a COCO folder and a configuration become a checkpoint."""
