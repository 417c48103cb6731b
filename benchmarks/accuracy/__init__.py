"""Scores on annotated images: box AP, mask AP and panoptic quality."""
