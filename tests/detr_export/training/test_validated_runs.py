"""Runs that are validated: which checkpoint they keep, when they stop, how they go on, and what they leave to look at."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.benchmarks.accuracy.scores import annotated
from detr_export.benchmarks.accuracy.validation import find_validation
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.data.sources import DataSource
from detr_export.data.splits import read_split
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.progress import Progress
from detr_export.training.averaging import Average
from detr_export.training.demo_data import write_demo_data
from detr_export.training.optimization import Schedule, make_optimizer, stage_objective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.precision import Precision
from detr_export.training.processes import Processes
from detr_export.training.request import Request
from detr_export.training.starting_point import starting_point
from detr_export.training.state import STATE_NAME, read_state
from detr_export.training.trainer import train
from detr_export.training.validation import Validation
from tests.detr_export.recorder import Recorder

FAST = TrainingOptions(
    task="detection",
    epochs=3,
    batch_size=4,
    learning_rate=1e-3,
    backbone_learning_rate=1e-3,
    scale=(0.8, 1.0),
    validation_images=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with 8 images to train on and 3 to validate on; not to be changed."""
    root = write_demo_data(tmp_path_factory.mktemp("data"), 8, "train")
    return write_demo_data(root, 3, "val")


def found_validation(data: Path, task: str = "detection") -> Validation:
    validation = find_validation(DataSource(data), task)
    assert validation is not None
    return validation


def scored(validation: Validation, scores: list[float]) -> Validation:
    """The same with these scores, one after the other."""
    left = iter(scores)

    def score(predictor: Predictor, limit: int | None, progress: Progress) -> Mapping[str, float]:
        return {"box_AP": next(left)}

    return replace(validation, score=score)


def rows(folder: Path, name: str = "validation_log.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_a_validated_run_leaves(data: Path, config_folder: Path, tmp_path: Path) -> None:
    """The scores are those of `evaluate`, the losses those of the checkpoint; the best one is the checkpoint."""
    out = tmp_path / "out"
    options = replace(FAST, task="panoptic", epochs=1, mask_epochs=1)
    result = train(data, out, options, config_folder, workers=0, validation=found_validation(data, "panoptic"))
    assert result is not None
    assert {path.name for path in out.iterdir()} >= {"best", "last", "plots", "predictions", "recipe.json", STATE_NAME}
    found = rows(out)
    assert [(row["stage"], row["epoch"], row["best"]) for row in found] == [("detector", "1", "1"), ("masks", "1", "1")]
    assert [bool(row["PQ"]) for row in found] == [False, True]
    assert [bool(row["loss_mask"]) for row in found] == [False, True]
    assert result.best == found[-1]
    about = annotated(DataSource(data).validation("detection"))
    scores = evaluate(out / "last", about.images, about.instances, about.panoptic, limit=2).accuracy.metrics()
    for name, (kind, metric) in {"box_AP": ("box", "AP"), "mask_AP": ("mask", "AP"), "PQ": ("panoptic", "PQ")}.items():
        assert float(found[-1][name]) == pytest.approx(scores[kind][metric], abs=1e-5)
    assert same(out, out / "best")
    assert {path.name for path in (out / "plots").iterdir()} >= {"confusion_matrix.png", "mask_precision_recall.csv"}
    for name in ("detector_001.png", "masks_001.png"):
        with Image.open(out / "predictions" / name) as picture:
            assert np.asarray(picture).std() > 10
    with Image.open(out / "training_log.png") as plot:
        assert plot.height == 2 * 4 * 120
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["validation_images"], recipe["best"]["epoch"], recipe["source"]) == (3, "1", None)


def test_the_best_checkpoint_is_the_one_that_counts(data: Path, config_folder: Path, tmp_path: Path) -> None:
    progress = Recorder()
    validation = scored(found_validation(data), [0.1, 0.3, 0.3])
    train(data, tmp_path, FAST, config_folder, workers=0, validation=validation, progress=progress)
    assert [row["best"] for row in rows(tmp_path)] == ["1", "1", ""]
    assert same(tmp_path, tmp_path / "best")
    assert not same(tmp_path, tmp_path / "last")
    told = [line.rpartition("; ")[2] for line in progress.lines if "validation after" in line]
    assert told == ["the best box AP so far", "the best box AP so far", "the best was epoch 2"]


def test_patience_ends_a_stage(data: Path, config_folder: Path, tmp_path: Path) -> None:
    options = replace(FAST, epochs=9, patience=2)
    validation = scored(found_validation(data), [0.2, 0.1, 0.3, 0.3, 0.1, 0.9])
    result = train(data, tmp_path, options, config_folder, workers=0, validation=validation)
    assert result is not None
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert result.steps == 5 * 2
    assert result.best is not None
    assert result.best["epoch"] == "3"
    with pytest.raises(InputError, match="has been trained for 5 epochs of the stage detector already; give more epochs"):
        train(data, tmp_path, options, workers=0, validation=validation, resume=True)


def test_patience_needs_a_validation(data: Path, config_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patience needs a validation"):
        train(data, tmp_path / "out", replace(FAST, patience=1), config_folder)
    assert not (tmp_path / "out").exists()


def test_every_other_epoch_and_the_last(data: Path, config_folder: Path, tmp_path: Path) -> None:
    validation = scored(found_validation(data), [0.1, 0.2])
    train(data, tmp_path, replace(FAST, validate_every=2), config_folder, workers=0, validation=validation)
    assert [row["epoch"] for row in rows(tmp_path)] == ["2", "3"]


class Interrupting(Recorder):
    """Presses Ctrl-C at a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, done: int, total: int, note: str = "") -> None:
        if done == self.at and "epoch" in note:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [3, 4])
def test_an_interrupted_run_goes_on_with_its_average_and_its_best(
    step: int, data: Path, config_folder: Path, tmp_path: Path
) -> None:
    """Nothing but the folder is given again. A checkpoint is there at once."""
    options = replace(FAST, ema=0.9, accumulate=2, batch_size=2)
    scores = [0.3, 0.1, 0.2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, options, config_folder, workers=0, validation=scored(found_validation(data), scores))
    request = Request(options, DataSource(data))
    with pytest.raises(KeyboardInterrupt):
        train(
            data,
            parts,
            options,
            config_folder,
            workers=0,
            validation=scored(found_validation(data), scores),
            progress=Interrupting(step),
            arguments=request.arguments,
        )
    with Predictor.load(parts / "last") as predictor:
        assert predictor.detect(Image.new("RGB", (90, 80))) is not None
    again = Request.resumed(parts, {}, None, False)
    assert (again.options, again.source) == (options, DataSource(data.absolute()))
    left = scored(found_validation(data), scores[step // 2 :])
    train(data, parts, again.options, workers=0, validation=left, resume=True)
    for name in ("best", "last", "."):
        assert same(whole / name, parts / name), name
    assert [row["best"] for row in rows(parts)] == ["1", "", ""]


def test_a_finished_run_goes_on_for_more_epochs(data: Path, config_folder: Path, tmp_path: Path) -> None:
    """With a constant learning rate it ends where a longer run ends."""
    constant = replace(FAST, drop=1.0, epochs=2)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    arguments = Request(constant, DataSource(data)).arguments
    train(data, parts, constant, config_folder, workers=0, arguments=arguments)
    longer = Request.resumed(parts, {"epochs": 3}, None, False).options
    result = train(data, parts, longer, workers=0, resume=True)
    train(data, whole, replace(constant, epochs=3), config_folder, workers=0)
    assert result is not None
    assert result.steps == 6
    assert same(parts, whole)
    assert [row["epoch"] for row in rows(parts, "training_log.csv")] == ["1", "2", "3"]
    with pytest.raises(InputError, match="has been trained for 3 epochs of the stage detector already"):
        train(data, parts, longer, workers=0, resume=True)
    with pytest.raises(InputError, match="is of another run: seed 0"):
        train(data, parts, replace(longer, seed=3), workers=0, resume=True)
    with pytest.raises(InputError, match="has been trained for 3 epochs"):
        train(data, parts, replace(longer, epochs=1), workers=0, resume=True)


def test_a_state_that_does_not_know_its_data(data: Path, config_folder: Path, tmp_path: Path) -> None:
    train(data, tmp_path, replace(FAST, epochs=1), config_folder, workers=0)
    with pytest.raises(InputError, match="does not say where the data is; give it"):
        Request.resumed(tmp_path, {}, None, False)
    assert Request.resumed(tmp_path, {"epochs": 2}, DataSource(data), True).skip_bad


def test_the_masks_are_trained_on_the_best_detector(data: Path, config_folder: Path, tmp_path: Path) -> None:
    options = replace(FAST, task="panoptic", epochs=2, mask_epochs=1)
    validation = found_validation(data, "panoptic")
    detectors: list[dict[str, torch.Tensor]] = []

    def score(predictor: Predictor, limit: int | None, progress: Progress) -> Mapping[str, float]:
        detectors.append(weights(tmp_path / "last"))
        return {"PQ": 0.5} if predictor.draws_masks else {"box_AP": 1.0 / len(detectors)}

    train(data, tmp_path, options, config_folder, workers=0, validation=replace(validation, score=score))
    first, second, final = detectors
    names = [name for name in final if name.startswith("detr.") and "num_batches" not in name]
    assert all(torch.equal(final[name], first[name]) for name in names)
    assert not all(torch.equal(final[name], second[name]) for name in names)


def test_the_source_and_its_digest_are_in_the_recipe(data: Path, tmp_path: Path) -> None:
    demo = load_checkpoint("demo")
    options = replace(FAST, epochs=1, batch_size=8, freeze_backbone=True)
    train(data, tmp_path, options, None, demo, workers=0)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["source"] == {"name": "demo", "sha256": demo.sha256}
    assert read_state(tmp_path / STATE_NAME).identity.source == recipe["source"]
    before, after = demo.state_dict, load_checkpoint(str(tmp_path)).state_dict
    changed = {name for name, value in after.items() if not torch.equal(value, before.get(f"detr.{name}", value))}
    assert changed
    assert not [name for name in changed if "conv_encoder" in name]


def test_a_fresh_backbone_cannot_be_frozen(data: Path, config_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a fresh backbone has to learn"):
        train(data, tmp_path, replace(FAST, freeze_backbone=True), config_folder, workers=0)


def test_accumulated_gradients_are_the_mean_of_the_batches(data: Path, config_folder: Path, tmp_path: Path) -> None:
    """One step on two batches is AdamW's step with the mean of their gradients."""
    config = json.loads((config_folder / "config.json").read_text()) | {"dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = (config_folder / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(processor)
    options = replace(FAST, epochs=1, batch_size=4, accumulate=2, train_batch_norm=False, flip=0.0, crop=0.0, scale=(1, 1))
    train(data, tmp_path / "out", options, tmp_path, workers=0)

    from detr_export.training.dataset import Batch, CocoDataset, ShuffledBatches, collate

    split = read_split(data, "train", "detection")
    start = starting_point(split, options, tmp_path, None)
    trainable = {name for name, parameter in start.model.named_parameters() if parameter.requires_grad}
    objective = stage_objective(start.model, trainable, Stage("detector", 1), Processes(0, 1, torch.device("cpu")))
    optimizer = make_optimizer(start.model, options)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * Schedule(options, 1).factor(0)
    dataset = CocoDataset(split, start.processor, False, None, 0)
    (indices,) = list(ShuffledBatches(8, 8, 0, range(1)))
    for part in (indices[:4], indices[4:]):
        batch = collate([dataset[index] for index in part])
        assert isinstance(batch, Batch)
        (objective(batch)[0] / 2).backward()
    torch.nn.utils.clip_grad_norm_([p for p in start.model.parameters() if p.requires_grad], options.clip)
    optimizer.step()
    found = weights(tmp_path / "out")
    moved = 0.0
    for name, value in start.model.state_dict().items():
        assert torch.allclose(found[name], value, atol=2e-4), name  # Adam's first step is the rate times the sign
        moved += float((found[name] - value).abs().mean())
    assert moved / len(found) < 2e-5  # the rate is 1e-3


def test_the_average_follows_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = value if step == 0 else decay * expected + (1 - decay) * value
        assert float(average.module.weight.detach()) == pytest.approx(expected)
    other = Average(model, 0.5)
    other.load_state_dict(average.state_dict())
    assert float(other.module.weight.detach()) == pytest.approx(expected)


def test_mixed_precision_needs_a_gpu(data: Path, config_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="mixed precision needs a GPU, and the device is cpu; leave --amp out"):
        train(data, tmp_path / "out", replace(FAST, mixed_precision=True), config_folder, workers=0)
    assert not (tmp_path / "out").exists()


def test_losses_in_mixed_precision_are_close(data: Path, config_folder: Path) -> None:
    """PyTorch's CPU computes in bfloat16, too, which shows what a GPU would compute."""
    from detr_export.training.dataset import Batch, CocoDataset, collate

    split = read_split(data, "train", "panoptic")
    options = TrainingOptions(task="panoptic", jointly=True)
    start = starting_point(split, options, config_folder, None)
    objective = stage_objective(start.model, set(), Stage("all", 1), Processes(0, 1, torch.device("cpu"))).eval()
    batch = collate([CocoDataset(split, start.processor, True, None, 0)[0, index] for index in range(2)])
    assert isinstance(batch, Batch)
    precision = Precision(torch.device("cpu"), False)
    exact = float(objective(batch)[0])
    precision._setup("cpu", True, torch.bfloat16)
    with precision.autocast():
        loss, terms = objective(batch)
    assert loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert float(loss) != exact
    assert float(loss) == pytest.approx(exact, rel=0.03)


def test_events_for_tensorboard(data: Path, config_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = replace(FAST, epochs=2)
    validation = scored(found_validation(data), [0.25, 0.5])
    train(data, tmp_path, options, config_folder, workers=0, validation=validation, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("detector/validation/box_AP")]
    assert found == [(2, 0.25), (4, 0.5)]
    logged = [float(row["loss"]) for row in rows(tmp_path, "training_log.csv")]
    assert [event.value for event in events.Scalars("detector/training/loss")] == pytest.approx(logged, rel=1e-5)
    assert len(events.Images("detector/predictions")) == 2


def test_data_without_a_validation_split(shapes: Path) -> None:
    progress = Recorder()
    assert find_validation(DataSource(shapes), "detection", progress=progress) is None
    assert progress.lines[0].startswith("no validation: ")
    assert "instances_val*.json" in progress.lines[0]


def test_bad_validation_pictures_are_left_out_when_asked(data: Path, config_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "val" / "000001.jpg").write_bytes(b"no picture")
    validation = find_validation(DataSource(root), "detection", skip_bad=True)
    assert validation is not None
    assert len(validation.split) == 2
    train(root, tmp_path / "out", replace(FAST, epochs=1), config_folder, workers=0, validation=validation)
    assert len(rows(tmp_path / "out")) == 1


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "detr_export", "train", "--workers", "0", *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_the_command_and_its_resume_without_retyping(data: Path, config_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    files = ["--annotations", str(data / "annotations" / "instances_train.json"), "--images", str(data / "train")]
    options = ["--epochs", "1", "--batch", "4", "--ema", "0.9", "--crop", "0", "--drop", "1", "--validation-images", "1"]
    first = command(*files, *options, "--config", str(config_folder), "-o", out)
    assert "7 images, 5 classes, and 1 to validate on" in first.stderr
    assert "1 steps, loss" in first.stdout
    assert "best: detector epoch 1, box AP" in first.stdout
    again = command("--resume", "--epochs", "2", "-o", out, "--json")
    assert json.loads(again.stdout)["steps"] == 2
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (recipe["options"]["ema"], recipe["options"]["crop"], recipe["options"]["epochs"]) == (0.9, 0.0, 2)
    assert [row["epoch"] for row in rows(tmp_path / "out")] == ["1", "2"]
    for arguments, message in (
        (("--resume", "-o", out), "has been trained for 2 epochs of the stage detector already; give more epochs"),
        (("--resume", "--seed", "5", "--epochs", "3", "-o", out), "is of another run: seed 0; resume with the options"),
        (("-o", out), "give either a data set (--data), or an annotation file (--annotations) and its --images"),
    ):
        assert message in command(*arguments, code=1).stderr


def test_fine_tuning_has_its_own_defaults(data: Path) -> None:
    assert TrainingOptions.fine_tuning() == replace(TrainingOptions(), epochs=50, warmup=None, drop=0.8)
    assert Schedule(TrainingOptions.fine_tuning(), 2000).warmup == 100
    assert Schedule(TrainingOptions.fine_tuning(), 20000).warmup == 500
    assert Request.new({"epochs": 7}, DataSource(data), False, fine_tunes=True).options.epochs == 7
    assert Request.new({}, DataSource(data), False, fine_tunes=False).options == TrainingOptions()


def test_patience_begins_anew_with_more_epochs(data: Path, config_folder: Path, tmp_path: Path) -> None:
    options = replace(FAST, epochs=9, patience=1)
    first, second = (scored(found_validation(data), scores) for scores in ([0.5, 0.4], [0.6, 0.3]))
    train(data, tmp_path, options, config_folder, workers=0, validation=first)
    result = train(data, tmp_path, replace(options, epochs=10), workers=0, validation=second, resume=True)
    assert result is not None
    assert [(row["epoch"], row["best"]) for row in rows(tmp_path)] == [("1", "1"), ("2", ""), ("3", "1"), ("4", "")]
    assert result.best is not None
    assert result.best["epoch"] == "3"


def test_the_first_of_two_processes_validates_and_all_go_on_from_its_best(
    data: Path, config_folder: Path, tmp_path: Path
) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "detr_export",
        "train",
    ]
    options = [
        "--task",
        "panoptic",
        "--epochs",
        "2",
        "--mask-epochs",
        "1",
        "--batch",
        "2",
        "--accumulate",
        "2",
        "--ema",
        "0.9",
    ]
    places = ["--data", str(data), "--config", str(config_folder), "-o", str(tmp_path / "out"), "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *options, "--patience", "1", *places], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("validation after epoch 1") == 2  # of each stage, by one process
    assert done.stdout.count("steps, loss") == 1
    found = rows(tmp_path / "out")
    assert [row["stage"] for row in found] == ["detector", "detector", "masks"]
    # The detector below the masks is the best one.
    best = max(found[:2], key=lambda row: float(row["box_AP"]))
    assert found[2]["box_AP"] == best["box_AP"]
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["processes"] == 2
