"""Training: from a COCO folder and a configuration, or a checkpoint, to a checkpoint."""
