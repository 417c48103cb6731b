"""What the tests of several backends share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def openvino_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where OpenVINO's compiled files go, once for all tests of a run and not into the user's own cache."""
    home = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "detr-export" / "openvino"
