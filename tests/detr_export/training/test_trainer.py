"""Whole runs: they learn, stop, go on to the same weights, and leave checkpoints that others read."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.data.splits import read_split
from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import (
    AnnotationError,
    BackendError,
    CheckpointError,
    DatasetError,
    DetrError,
    ImageError,
    InputError,
    OutputError,
)
from detr_export.training.dataset import Batch, CocoDataset, ShuffledBatches, collate
from detr_export.training.options import TrainingOptions
from detr_export.training.starting_point import starting_point
from detr_export.training.state import STATE_NAME
from detr_export.training.trainer import Training, train
from detr_export.training.training_log import COLUMNS
from tests.detr_export.recorder import Recorder

FAST = TrainingOptions(
    task="panoptic",
    epochs=2,
    mask_epochs=1,
    batch_size=5,  # four batches an epoch
    learning_rate=1e-3,
    backbone_learning_rate=1e-3,
    scale=(0.8, 1.0),
)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "training_log.csv").read_text().splitlines()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_fifty_steps_lower_the_loss(shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    options = replace(FAST, task="detection", epochs=13, warmup=5, flip=0.0)
    result = train(shapes, tmp_path / "out", options, config_folder, workers=0)
    assert result is not None
    assert result.steps == 52
    losses = [float(row["loss"]) for row in rows(tmp_path / "out")]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]  # 0.853 of it on a CPU with AVX2
    assert float(rows(tmp_path / "out")[-1]["loss_ce"]) < float(rows(tmp_path / "out")[0]["loss_ce"])


@pytest.fixture(scope="module")
def panoptic(shapes: Path, config_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole panoptic run."""
    folder = tmp_path_factory.mktemp("panoptic") / "out"
    train(shapes, folder, FAST, config_folder, workers=1)
    return folder


def test_what_a_run_leaves(panoptic: Path) -> None:
    assert sorted(file.name for file in panoptic.iterdir()) == [
        "config.json",
        "last",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.json",
        "training_log.csv",
        "training_log.png",
        "training_state.pt",
    ]
    log = rows(panoptic)
    assert tuple(log[0]) == COLUMNS
    assert [(row["stage"], row["epoch"], row["step"]) for row in log] == [
        ("detector", "1", "4"),
        ("detector", "2", "8"),
        ("masks", "1", "4"),
    ]
    assert [bool(row["loss_mask"]) for row in log] == [False, False, True]
    # Of eight steps the rate drops after round(2 / 3 * 8) = 5.
    assert [row["learning_rate"] for row in log] == ["0.001", "0.0001", "0.0001"]
    recipe = json.loads((panoptic / "recipe.json").read_text())
    assert (recipe["images"], recipe["steps"], recipe["options"]["batch_size"]) == (24, 12, 5)
    with Image.open(panoptic / "training_log.png") as plot:
        assert plot.width == 2 * 6 * 120


def test_the_checkpoint_is_one_for_transformers_and_for_the_predictor(panoptic: Path, shapes: Path) -> None:
    import transformers

    checkpoint = load_checkpoint(panoptic)
    assert not checkpoint.config.auxiliary_loss
    assert checkpoint.config.extra["label_ids_to_fuse"] == [6, 7, 8, 9]
    theirs = transformers.DetrForSegmentation.from_pretrained(panoptic).eval()
    image = shapes / "train" / "000001.jpg"
    with Predictor.load(panoptic) as predictor, torch.no_grad():
        inputs = predictor.processor(Image.open(image), return_tensors="np")
        ours = predictor.session.run({name: inputs[name] for name in ("pixel_values", "pixel_mask")})
        expected = theirs(**{name: torch.from_numpy(inputs[name]) for name in ("pixel_values", "pixel_mask")})
        predictor.segment_panoptic(image)
    for name in ("logits", "pred_boxes", "pred_masks"):
        assert np.allclose(ours[name], expected[name].numpy(), atol=2e-4), name
    variances = [value for name, value in weights(panoptic).items() if name.endswith("running_var")]
    assert variances
    assert all((value - 1).abs().max() > 1e-3 for value in variances)  # batch norm has learnt


class Interrupting(Recorder):
    """Presses Ctrl-C at a step of a stage."""

    def __init__(self, stage: str, at: int) -> None:
        super().__init__()
        self.name, self.at = stage, at

    def step(self, done: int, total: int, note: str = "") -> None:
        if done == self.at and note.startswith(f"{self.name}, epoch ") and "loss" in note:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("stage", "step"), [("detector", 3), ("detector", 4), ("detector", 8), ("masks", 2)])
@pytest.mark.parametrize("dropout", [0.1])
def test_an_interrupted_run_ends_in_the_same_weights(
    stage: str, step: int, dropout: float, panoptic: Path, shapes: Path, config_folder: Path, tmp_path: Path
) -> None:
    assert json.loads((panoptic / "config.json").read_text())["dropout"] == dropout
    folder, progress = tmp_path / "out", Interrupting(stage, step)
    before = signal.getsignal(signal.SIGINT)  # not Python's own where the tests run in the background of a shell
    with pytest.raises(KeyboardInterrupt):
        train(shapes, folder, FAST, config_folder, workers=1, progress=progress)
    assert progress.lines[-1].endswith("add --resume to go on")
    assert (folder / STATE_NAME).is_file()
    assert not (folder / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(OutputError, match=r"training_state\.pt exists; add --resume to go on, or --overwrite"):
        train(shapes, folder, FAST, config_folder, workers=0)
    with pytest.raises(InputError, match="is of another run: seed 0; resume with the options of that run"):
        train(shapes, folder, replace(FAST, seed=1), config_folder, workers=0, resume=True)
    train(shapes, folder, FAST, config_folder, workers=0, resume=True)
    expected, found = weights(panoptic), weights(folder)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    # Rows are closed at the end of an epoch, so the log of both is the same but for the speed.
    for one, other in zip(rows(panoptic), rows(folder), strict=True):
        assert {name: value for name, value in one.items() if name in ("stage", "epoch", "step", "learning_rate")} == {
            name: value for name, value in other.items() if name in ("stage", "epoch", "step", "learning_rate")
        }


def test_fine_tuning_goes_on_from_the_checkpoint(panoptic: Path, shapes: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing the weights stay what they were, and batch norm stays frozen."""
    options = replace(FAST, learning_rate=0.0, backbone_learning_rate=0.0, weight_decay=0.0, epochs=1, jointly=True)
    train(shapes, tmp_path / "out", options, None, load_checkpoint(panoptic), workers=0)
    expected, found = weights(panoptic), weights(tmp_path / "out")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_mask_stage_leaves_the_detector_alone(panoptic: Path, shapes: Path, tmp_path: Path) -> None:
    options = replace(FAST, epochs=0)
    train(shapes, tmp_path / "out", options, None, load_checkpoint(panoptic), workers=0)
    before, after = weights(panoptic), weights(tmp_path / "out")
    changed = {name.partition(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"mask_head", "bbox_attention"}


def test_clipping_and_separate_rates(shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    """Without a rate of its own the backbone's parameters stay; the norm that is logged is that before clipping."""
    options = replace(FAST, task="detection", epochs=1, backbone_learning_rate=0.0, weight_decay=0.0)
    train(shapes, tmp_path / "still", options, config_folder, workers=0)
    train(shapes, tmp_path / "none", replace(options, learning_rate=0.0), config_folder, workers=0)
    still, none = weights(tmp_path / "still"), weights(tmp_path / "none")
    changed = {name for name, value in none.items() if not torch.equal(still[name], value)}
    assert changed
    assert not {name for name in changed if "conv_encoder" in name and "running" not in name}
    assert float(rows(tmp_path / "still")[0]["gradient_norm"]) > options.clip


def test_two_processes(shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    """Under torchrun each process takes half of a batch; without batch norm and dropout that is the run of one process."""
    config = json.loads((config_folder / "config.json").read_text()) | {"dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text((config_folder / "preprocessor_config.json").read_text())
    options = ["--epochs", "1", "--keep-batch-norm", "--learning-rate", "1e-3", "--workers", "0", "--config", str(tmp_path)]
    options += ["--data", str(shapes)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "detr_export", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options, "--batch", "3", "--output", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("two  4 steps, loss") == 1
    alone = [sys.executable, "-m", "detr_export", "train", *options, "--batch", "6", "--output", str(tmp_path / "one")]
    subprocess.run(alone, env=environment, capture_output=True, check=True)
    assert json.loads((tmp_path / "two" / "recipe.json").read_text())["processes"] == 2
    # The log is of the images of both. (Each process weighs its classes by itself, so loss_ce differs a little.)
    for name, tolerance in (("loss_bbox", 0.01), ("loss_giou", 0.01), ("loss_ce", 0.05)):
        of_one, of_two = (float(rows(tmp_path / folder)[0][name]) for folder in ("one", "two"))
        assert of_two == pytest.approx(of_one, rel=tolerance), name
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    start = starting_point(read_split(shapes, "train", "detection"), TrainingOptions(train_batch_norm=False), tmp_path, None)
    begin = start.model.state_dict()
    moved = [torch.cat([(run[name] - begin[name]).flatten() for name in begin]) for run in (one, two)]
    # Not equal: each process weighs its classes by itself. Other images, or another order, would give about 0.7.
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "message"),
    [
        ({"batch_size": 25}, {}, InputError, "24 images do not fill a batch of 25"),
        ({"learning_rate": 1e30}, {}, InputError, "NaN|not finite|is nan|is inf"),
        ({}, {"resume": True}, InputError, "there is no run to resume"),
        ({}, {"device": "cuda"}, BackendError, "sees no GPU"),
        ({}, {"device": "tpu"}, BackendError, "device is 'tpu'"),
        ({}, {"output": "{file}"}, OutputError, "is not a folder that this user may write to"),
        ({}, {"data": "nothing"}, AnnotationError, "is no data set that is known"),
    ],
)
def test_refusals(
    changes: dict, arguments: dict, error: type[DetrError], message: str, shapes: Path, config_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    if "output" in arguments:
        arguments = {"output": tmp_path / "file"}
    values = {"data": shapes, "config": config_folder, "output": tmp_path / "out", "workers": 0, **arguments}
    with pytest.raises(error, match=message):
        train(options=replace(FAST, **changes), **values)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_without_room_for_sockets_is_refused(
    shapes: Path, config_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the batches would never come, and the run would wait for them for ever."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 80)
    with pytest.raises(InputError, match=r"has 85 bytes; expected at most 7[15], .* set TMPDIR .* --workers 0"):
        train(shapes, tmp_path / "out", FAST, config_folder, workers=1)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def broken(shapes: Path, tmp_path: Path) -> Path:
    """The data with an annotation of no image, and an image file that is none."""
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    (root / "train" / "000007.jpg").write_bytes(b"no picture")
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["image_id"] = 77
    file.write_text(json.dumps(document))
    return root


def test_bad_data_is_refused_before_anything_is_made(broken: Path, config_folder: Path, tmp_path: Path) -> None:
    progress = Recorder()
    options = replace(FAST, task="detection")
    with pytest.raises(DatasetError, match="has 2 problems") as caught:
        train(broken, tmp_path / "out", options, config_folder, progress=progress)
    assert "\n  image 7: file_name: " in str(caught.value)
    assert "\n  annotation 1: image_id is 77: expected the id of an image" in str(caught.value)
    assert progress.lines == ["checking 24 pictures"]
    assert not (tmp_path / "out").exists()


def test_the_command_names_bad_data_before_it_reads_the_checkpoint(broken: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_export", "train", "--data", str(broken), "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, "--from", str(tmp_path / "no checkpoint")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    checking, error, *problems = done.stderr.splitlines()
    assert checking == "  checking 24 pictures"
    assert error.startswith("error: ")
    assert error.endswith(
        "has 2 problems; correct them, or leave the bad images and annotations out with --skip-bad (skip_bad=True):"
    )
    assert [line.split(":")[0] for line in problems] == ["  image 7", "  annotation 1"]


def test_bad_data_is_left_out_when_asked(broken: Path, config_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_export", "train", "--data", str(broken), "-o", str(tmp_path / "out"), "--json"]
    options = ["--config", str(config_folder), "--epochs", "1", "--batch", "23", "--workers", "0", "--skip-bad"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    document = json.loads((broken / "annotations" / "instances_train.json").read_text())
    bad = 1 + sum(item["image_id"] == 7 for item in document["annotations"])
    assert f"  left out as bad: 1 images, {bad} annotations" in done.stderr.splitlines()
    left_out = {"images": 1, "annotations": bad}
    assert json.loads(done.stdout)["left_out"] == left_out
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (recipe["data"], recipe["images"], recipe["left_out"]) == ("data", 23, left_out)


def test_data_that_was_read_for_the_other_task(shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    split = read_split(shapes, "train", "detection")
    with pytest.raises(InputError, match="the data was read for the task detection, and task is panoptic"):
        train(split, tmp_path / "out", FAST, config_folder)


def test_pixels_that_are_damaged_behind_the_header_are_named_also_from_a_worker(
    shapes: Path, config_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    picture = data / "train" / "000007.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])
    options = replace(FAST, task="detection", batch_size=24)
    with pytest.raises(ImageError, match=r"000007\.jpg is damaged or truncated") as caught:
        train(data, tmp_path / "out", options, config_folder, workers=1)
    assert "Traceback" not in str(caught.value)


# ---- what is logged is what is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "dropout"),
    [
        ({"epochs": 1, "mask_epochs": 0}, 0.0),
        ({"epochs": 0, "mask_epochs": 1}, 0.0),
        ({"epochs": 0, "mask_epochs": 1}, 0.1),  # the detector below the masks drops nothing
        ({"epochs": 1, "jointly": True}, 0.0),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_is_logged_is_the_loss_of_what_is_written(
    stages: dict, dropout: float, batch_size: int, panoptic: Path, shapes: Path, tmp_path: Path
) -> None:
    """At a learning rate of nothing the losses of a run are those of its checkpoint, in evaluation mode and on the batches
    of the run. transformers computes them."""
    import transformers

    config = json.loads((panoptic / "config.json").read_text()) | {"dropout": dropout}
    (tmp_path / "config.json").write_text(json.dumps(config))
    still = {"learning_rate": 0.0, "backbone_learning_rate": 0.0, "flip": 0.0, "scale": (1.0, 1.0), "crop": 0.0}
    options = replace(FAST, batch_size=batch_size, train_batch_norm=False, **stages, **still)
    out = tmp_path / "out"
    train(shapes, out, options, tmp_path, load_checkpoint(panoptic), workers=0)
    model = transformers.DetrForSegmentation.from_pretrained(out).eval()
    data = CocoDataset(read_split(shapes, "train", "panoptic"), load_checkpoint(out).processor, True, None, 0)
    steps = 24 // batch_size
    expected: dict[str, list[float]] = defaultdict(list)
    for indices in ShuffledBatches(24, batch_size, options.seed, range(steps)):
        batch = collate([data[index] for index in indices])
        assert isinstance(batch, Batch)
        with torch.no_grad():
            found = model(batch.pixel_values, batch.pixel_mask, labels=batch.targets).loss_dict
        for name, value in found.items():
            expected[name].append(float(value))
    row_ends = [int(row["step"]) for row in rows(out)]
    assert row_ends == ([8, 16, 24] if batch_size == 1 else [4])
    names = ["loss_ce", "loss_bbox", "loss_giou"] + ["loss_mask", "loss_dice"] * (stages != {"epochs": 1, "mask_epochs": 0})
    for row, start, end in zip(rows(out), [0, *row_ends], row_ends, strict=False):
        for name in names:
            assert float(row[name]) == pytest.approx(np.mean(expected[name][start:end]), rel=1e-3), name


def test_a_finished_run_is_not_overwritten_by_accident(
    panoptic: Path, shapes: Path, config_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"training_state\.pt exists; add --resume to go on, or --overwrite"):
        train(shapes, panoptic, FAST, config_folder)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(OutputError, match=r"model\.safetensors exists; add --overwrite to begin anew"):
        train(shapes, tmp_path, FAST, config_folder)


def test_a_damaged_state(panoptic: Path, shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged and cannot be resumed"):
        train(shapes, tmp_path, FAST, config_folder, resume=True)


def test_results_as_json(panoptic: Path) -> None:
    assert json.loads(json.dumps(Training(panoptic, 3, {"loss": "1"}, {}).to_dict()))["steps"] == 3
