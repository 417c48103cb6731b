"""ONNX files by their names on the hub, from a cache in offline mode."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from huggingface_hub import errors
from onnx import TensorProto, helper, numpy_helper

from detr_export.benchmarks.speed.targets import check_targets
from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes import Predictor, open_session
from detr_export.runtimes.errors import ArtifactError, BackendError, CheckpointError
from detr_export.runtimes.hub import hub_errors, onnx_file
from detr_export.runtimes.mask_head import mask_head_file
from tests import models

NAME, REPOSITORY = "someone/tiny-detr/onnx/model.onnx", "someone/tiny-detr"


@pytest.fixture
def hub(hub_cache: Path, tiny_onnx: Path, segmenter_onnx: Path) -> Path:
    """A detector in the hub's cache, and at revision `v2` a segmentation model; returns the detector's place."""
    v2 = {"revision": "v2", "commit": "2" * 40}
    models.publish(hub_cache, REPOSITORY, segmenter_onnx, "onnx/model.onnx", **v2)
    models.publish(hub_cache, REPOSITORY, mask_head_file(segmenter_onnx), "onnx/model.masks.onnx", **v2)
    return models.publish(hub_cache, REPOSITORY, tiny_onnx, "onnx/model.onnx")


def test_everything_that_opens_a_file_takes_the_name(hub: Path, photo: Path) -> None:
    assert onnx_file(NAME) == hub
    with open_session(NAME) as session:
        assert [spec.name for spec in session.outputs] == ["logits", "pred_boxes"]
    with Predictor.load(NAME) as predictor:
        assert not predictor.draws_masks
    assert inspect_onnx(NAME).path == str(hub)
    (target,), problems = check_targets([NAME])
    assert (target.source, target.name, problems) == (str(hub), "ort:model.onnx", [])


def test_revisions(hub: Path) -> None:
    with open_session(NAME, revision="v2") as session:
        assert "pred_masks" in [spec.name for spec in session.outputs]
    assert onnx_file(NAME, "main") == onnx_file(NAME, "1" * 40) == hub
    with pytest.raises(ArtifactError, match="nor in the hub's cache, and the hub could not be reached"):
        onnx_file(NAME, "v3")


def test_a_model_in_two_files_without_its_mask_head(hub: Path, hub_cache: Path) -> None:
    next(hub_cache.rglob("model.masks.onnx")).unlink()
    with pytest.raises(ArtifactError, match="nor in the hub's cache, and the hub could not be reached"):
        onnx_file(NAME, "v2")


def test_a_file_on_this_machine_comes_first(
    hub: Path, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).parent.mkdir(parents=True)
    Path(NAME).write_bytes(b"mine")
    assert onnx_file(NAME) == Path(NAME)
    with pytest.raises(ArtifactError, match=r"model.onnx is a file; --revision goes with a file on the hub: org/repo/file"):
        onnx_file(NAME, "v2")


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "someone/model.onnx",
        f"./{NAME}",
        f"/{NAME}",
        f"../{NAME}",
        f"~/{NAME}",
        Path(NAME),
        "someone/tiny-detr/../model.onnx",
        "someone/tiny-detr//model.onnx",
        "some one/tiny-detr/onnx/model.onnx",
        "someone/tiny-detr/onnx/model.engine",
    ],
)
def test_other_names_are_paths(hub: Path, name: str | Path) -> None:
    assert onnx_file(name) == Path(name).expanduser()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/else/model.onnx", "someone/else/model.onnx is neither an existing path nor in the hub's cache"),
        ("someone/tiny-detr/other.onnx", "someone/tiny-detr/other.onnx is neither an existing path nor in the hub's cache"),
        ("someone/tiny--detr/model.onnx", "is neither an existing path nor a hub id"),
    ],
)
def test_what_is_not_there(hub: Path, name: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_session(name)
    assert message.partition(" is ")[2] in check_targets([name])[1][0][1]


@pytest.mark.parametrize("length", [5, 127])
def test_weights_in_another_file(hub_cache: Path, tmp_path: Path, length: int) -> None:
    """Only the file itself is fetched, so its weights would be missing."""
    data = "w" * length
    weight = numpy_helper.from_array(np.ones(400, np.float32), "weight")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [400])
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", [value], [value], [weight])
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "whole.onnx")
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location=data, size_threshold=0)
    models.publish(hub_cache, REPOSITORY, tmp_path / "whole.onnx", "whole.onnx")
    models.publish(hub_cache, REPOSITORY, tmp_path / "split.onnx", "split.onnx")
    assert onnx_file(f"{REPOSITORY}/whole.onnx").name == "whole.onnx"
    message = f"{REPOSITORY}/split.onnx keeps weights in another file, {data}, which is not fetched"
    with pytest.raises(ArtifactError, match=message):
        onnx_file(f"{REPOSITORY}/split.onnx")
    with pytest.raises(ArtifactError, match=message):
        inspect_onnx(f"{REPOSITORY}/split.onnx")


def test_an_empty_file_is_left_to_its_reader(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    models.publish(hub_cache, REPOSITORY, tmp_path / "empty", "model.onnx")
    with pytest.raises(ArtifactError, match="cannot be loaded by ONNX Runtime"):
        open_session(f"{REPOSITORY}/model.onnx")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendError, match=r"model.onnx does not exist here, and huggingface_hub .*'detr-export\[hub\]'"):
        onnx_file(NAME)


class Answer:
    """What the hub's errors carry."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request = None


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (errors.GatedRepoError, "a/b needs a login; run: hf auth login"),
        (errors.RepositoryNotFoundError, "a/b is neither an existing path nor a repository on the hub"),
        (errors.RevisionNotFoundError, "a/b has no revision 'v9'"),
        (errors.EntryNotFoundError, "a/b is not an existing path, and its repository on the hub has no c.onnx"),
        (OSError, "a/b could not be fetched from the hub: offline"),
    ],
)
@pytest.mark.parametrize("kind", [ArtifactError, CheckpointError])
def test_what_the_hub_answers(raised: type[Exception], message: str, kind: type[Exception]) -> None:
    error = raised("offline", response=Answer()) if issubclass(raised, errors.HfHubHTTPError) else raised("offline")
    with pytest.raises(kind, match=message), hub_errors("a/b", "c.onnx", "v9", kind):
        raise error
