"""A small data set, and configurations that train fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detr_export.training.demo_data import write_demo_data
from tests import models


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with 24 training images; not to be changed."""
    return write_demo_data(tmp_path_factory.mktemp("shapes"), 24, "train")


@pytest.fixture(scope="session")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json` with a mask head's number of heads and dropout, and its processor; not to be changed."""
    folder = tmp_path_factory.mktemp("config")
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    config = {**models.TINY, **heads, "num_queries": 12}
    del config["id2label"]
    (folder / "config.json").write_text(json.dumps(config))
    size = {"shortest_edge": 96, "longest_edge": 128}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size, "format": "coco_panoptic"}))
    return folder
