"""Records what transformers 5 writes and computes, for tests that run beside transformers 4.57.6.

`make transformers5` runs this in an environment of its own and writes `tests/data/transformers5.npz`. For each checkpoint
it holds the configuration, the name, shape and type of every parameter, and the outputs. The parameters themselves are
drawn from their names, here and in the tests, so the file stays small.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from detr_export.seeding import random_images

DATA = Path(__file__).parent / "data" / "transformers5.npz"
_TRANSFORMER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
    "num_queries": 7,
    "id2label": {0: "cat", 1: "dog", 2: "cat"},
}
_SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "layer_type": "basic"}
_SHARPNESS, _GAIN = 2.5, 2.0
_SEED = 2  # of four that were tried, the one under which float32 is least off float64: 9e-6 on logits, 4e-6 on boxes


def draw(name: str, shape: list[int]) -> torch.Tensor:
    """A parameter from its name, on a scale under which outputs vary from image to image."""
    generator = np.random.default_rng(zlib.crc32(name.encode()) + _SEED)
    normal = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(normal)
    elif len(shape) < 2:
        one = 1.0 if name.endswith("weight") else 0.0
        # The norm that ends a residual branch is small, or the sum would grow with every block.
        closing = name.endswith((".bn3.weight", ".layer.1.normalization.weight", ".layer.2.normalization.weight"))
        value = (0.3 if closing else 1.0) * one + 0.1 * normal
    elif "position_embedding" in name:  # of the queries, and learned rows and columns
        value = normal
    else:
        fan_in = int(np.prod(shape[1:]))
        entry = "input_projection" in name  # feature maps are large, and large scores would amplify rounding
        sharp = ("encoder_attn" in name or "bbox_attention" in name) and ".out_proj" not in name and ".o_proj" not in name
        last = name.endswith(("class_labels_classifier.weight", "bbox_predictor.layers.2.weight"))
        value = normal * np.float32((_SHARPNESS if sharp else _GAIN if last else 0.3 if entry else 1.4) / fan_in**0.5)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def example() -> dict[str, torch.Tensor]:
    """Two images, the second padded."""
    mask = torch.ones((2, 120, 150), dtype=torch.int64)
    mask[1, 90:], mask[1, :, 100:] = 0, 0
    return {"pixel_values": torch.from_numpy(random_images((2, 3, 120, 150), 5)) * mask[:, None], "pixel_mask": mask}


def picture() -> Image.Image:
    """What the processors are given."""
    pixels = random_images((1, 3, 61, 83), 3)[0].transpose(1, 2, 0)
    return Image.fromarray((128 + 50 * pixels).clip(0, 255).astype(np.uint8))


PROCESSOR_SIZE = {"shortest_edge": 40, "longest_edge": 60}


def models() -> dict[str, tuple[Callable[[], Any], dict[str, Any]]]:
    """Each checkpoint: how its model is made, and how it is saved."""
    import transformers as t

    def detr(**changes: Any) -> t.DetrConfig:
        return t.DetrConfig(**{**_TRANSFORMER, **changes})

    def no_timm(**changes: Any) -> t.DetrConfig:
        return detr(backbone_config=t.ResNetConfig(**_SMALL_RESNET, **changes))

    table = t.TableTransformerConfig(backbone="resnet18", **_TRANSFORMER)
    find, segment = t.DetrForObjectDetection, t.DetrForSegmentation
    every, three = [f"stage{index}" for index in (1, 2, 3, 4)], ["stage2", "stage3", "stage4"]
    own_names = {"save_original_format": False}
    return {
        "r50": (lambda: find(detr()), {}),
        "r18": (lambda: find(detr(backbone="resnet18")), {}),
        "dc5": (lambda: find(detr(backbone="resnet18", dilation=True)), {}),
        "one channel": (lambda: find(detr(backbone="resnet18", num_channels=1)), {}),
        "learned": (lambda: find(detr(backbone="resnet18", position_embedding_type="learned")), {}),
        "no_timm": (lambda: find(no_timm(out_features=["stage4"])), {}),
        "half": (lambda: find(no_timm(out_features=["stage4"])).half(), {}),
        "sharded": (lambda: find(no_timm(out_features=["stage4"])), {"max_shard_size": "200KB"}),
        "panoptic": (lambda: segment(detr(backbone="resnet18")), {}),
        "panoptic no_timm": (lambda: segment(no_timm(out_features=every)), {}),
        "panoptic three maps": (lambda: segment(no_timm(out_features=three)), {}),
        "auxiliary": (lambda: find(detr(backbone="resnet18", auxiliary_loss=True)), {}),
        "own names": (lambda: find(detr(backbone="resnet18", position_embedding_type="learned")), own_names),
        "own names panoptic": (lambda: segment(no_timm(out_features=every)), own_names),
        "table": (lambda: t.TableTransformerForObjectDetection(table), {}),
    }


def write(folder: Path, config: str, files: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes a checkpoint as it was recorded, with drawn parameters. `files` has the shape and type of each parameter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    for file, parameters in files.items():
        tensors = {
            name: draw(name, shape).to(getattr(torch, dtype)) if dtype != "int64" else torch.zeros(shape, dtype=torch.int64)
            for name, (shape, dtype) in parameters.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {name: file for file, parameters in files.items() for name in parameters}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def record_model(make: Callable[[], Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is written for a model, and what it computes with drawn parameters."""
    torch.manual_seed(0)
    model = make()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, **options)
        files: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as stream:
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118  # not a dictionary
            files[file.name] = {
                key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in tensors.items()
            }
        config = (folder / "config.json").read_text()
        write(folder, config, files)
        loaded = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    inputs = example()
    inputs["pixel_values"] = inputs["pixel_values"][:, : loaded.config.num_channels]
    with torch.no_grad():
        outputs = loaded(**inputs)
    names = [name for name in ("logits", "pred_boxes", "pred_masks") if name in outputs]
    return {"config": config, "files": files}, {name: outputs[name].numpy() for name in names}


def record_processor(kind: Any) -> tuple[str, np.ndarray]:
    """The settings that a processor writes, and the pixels that it makes of the picture."""
    processor = kind(size=PROCESSOR_SIZE)
    with tempfile.TemporaryDirectory() as name:
        processor.save_pretrained(name)
        settings = (Path(name) / "preprocessor_config.json").read_text()
    return settings, processor(picture(), return_tensors="pt")["pixel_values"][0].numpy()


def main() -> None:
    """Writes the data file."""
    from detr_export.benchmarks.oracle import import_transformers

    transformers = import_transformers()
    from transformers.models.detr import DetrImageProcessorPil

    records: dict[str, Any] = {"transformers": transformers.__version__, "models": {}, "processors": {}}
    arrays: dict[str, np.ndarray] = {}
    for name, (make, options) in models().items():
        records["models"][name], outputs = record_model(make, options)
        spread = {key: float(np.abs(value[0] - value[1]).max()) for key, value in outputs.items()}
        print(f"{name}: images differ by {spread}")
        arrays |= {f"{name}/{key}": value for key, value in outputs.items()}
    for name, kind in (("torchvision", transformers.DetrImageProcessor), ("pil", DetrImageProcessorPil)):
        records["processors"][name], arrays[f"{name}/pixel_values"] = record_processor(kind)
    text = np.frombuffer(json.dumps(records).encode(), dtype=np.uint8)
    np.savez_compressed(DATA, records=text, **arrays)  # type: ignore[arg-type]  # its stubs mistake the names for an option
    print(f"{DATA}  {DATA.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
