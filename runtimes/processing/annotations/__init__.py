"""COCO annotations to training targets: the two formats, the checks of their fields, and the transforms."""
