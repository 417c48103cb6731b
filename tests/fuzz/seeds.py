"""Writes the small files that mutations start from: `python -m tests.fuzz.seeds`.

Running it again gives the same ones, but for pth/old.pth, in which PyTorch writes addresses in memory.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save

from detr_export.backbone_config import ResNetConfig
from detr_export.checkpoints.reading import PACKAGED
from detr_export.config import DetrConfig
from detr_export.runtimes.metadata import METADATA_KEY, EndToEnd, Metadata, Quantization
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.rle import encode_compressed_rle, encode_rle
from detr_export.training.options import TrainingOptions
from tests.models import TINY

CORPUS = Path(__file__).parent / "corpus"
_DEMO = PACKAGED["demo"]


def write() -> None:
    """Writes all of them."""
    _write_documents()
    _write_checkpoints()
    _write_annotations()
    _write_pictures()
    _write_graphs()


def _keep(target: str, name: str, content: bytes | str | Any) -> None:
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    file = CORPUS / target / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def metadata() -> Metadata:
    """Of a model with all that metadata can have."""
    scores = {"scores": {"AP": 0.5}, "difference": {"AP": 0.0}, "images": 10}
    return Metadata(
        task="detection",
        id2label={0: "N/A", 1: "person"},
        processor=DetrImageProcessor(size={"height": 12, "width": 16}).to_dict(),
        pixel_mask=False,
        precision="int8",
        quantization=Quantization("backbone", "minmax", 10, "fp32", {"a": "large"}, {"logits": 1e-5}, scores),
        opset=17,
        ranges={"batch": (1, 4), "height": (1, None), "width": (1, 1333)},
        label_ids_to_fuse=(1,),
        source={"name": "demo", "sha256": "0" * 64},
        tools={"torch": "2.10"},
        parity={"max_abs_diff": {"logits": 1e-5}, "ratio": {"logits": 1.5}},
    )


def _write_documents() -> None:
    _keep(
        "config",
        "demo.json",
        {**json.loads((_DEMO / "config.json").read_text()), "id2label": {"0": "N/A", "1": "a"}, "label_ids_to_fuse": [1]},
    )
    _keep("config", "tiny.json", TINY)
    _keep("config", "timm5.json", {**_timm5(), "model_type": "detr", "num_labels": 3})
    _keep("config", "table.json", DetrConfig(pre_norm=True).to_dict())
    _keep("backbone", "resnet.json", ResNetConfig().to_dict())
    _keep("backbone", "timm.json", _timm5()["backbone_config"])
    _keep("processor", "demo.json", (_DEMO / "preprocessor_config.json").read_bytes())
    _keep("processor", "size.json", {"size": {"height": 12, "width": 16}, "pad_size": {"height": 20, "width": 20}})
    _keep("processor", "old.json", {"feature_extractor_type": "DetrFeatureExtractor", "size": 20, "max_size": 40})
    fast = {"image_processor_type": "DetrImageProcessorFast", "size": {"shortest_edge": 20, "longest_edge": 30}}
    _keep("processor", "fast.json", fast)
    about = metadata()
    _keep("metadata", "int8.json", about.to_json())
    whole = {**json.loads(about.to_json()), "end_to_end": vars(EndToEnd("rgb", "matmul", 10)), "input": "image"}
    _keep("metadata", "whole.json", whole)
    _keep("sidecar", "engine.json", _sidecar(json.loads(about.to_json())))
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    _keep("index", "two.json", {"metadata": {"total_size": 2}, "weight_map": shards})
    _keep("golden", "index.json", _golden())
    _keep("recipe", "detection.json", TrainingOptions().to_dict())
    _keep("recipe", "panoptic.json", TrainingOptions(task="panoptic", warmup=None, patience=3, ema=0.5).to_dict())
    log = "stage,epoch,step,learning_rate,loss\ndetector,1,5,0.0001,3.5\ndetector,2,10,0.0001,2.5\nmasks,1,5,0.0001,1\n"
    _keep("log", "log.csv", log)


def _timm5() -> dict[str, Any]:
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "resnet50",
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": True,
        "out_indices": [1, 2, 3, 4],
        "output_stride": 16,
    }
    return {"backbone_config": backbone}


def _sidecar(about: dict[str, Any]) -> dict[str, Any]:
    spec = {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    return {
        "sha256": "0" * 64,
        "source_sha256": "1" * 64,
        "build_key": "2" * 64,
        "library": "tensorrt",
        "library_version": "10.16.1",
        "cuda": "13.0",
        "gpu": "NVIDIA H200",
        "targets": [[9, 0]],
        "precision": "fp16",
        "fallback": None,
        "version_compatible": False,
        "hardware_compatible": False,
        "profiles": ["1x64x64:1x800x1066:1x1333x1333"],
        "inputs": [spec],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 9, 6]}],
        "layers": {"fp16": 10},
        "attestation": {"Convolution": {"fp16": 3}},
        "kernels": None,
        "verified": True,
        "metadata": about,
        "format_version": 2,
    }


def _golden() -> dict[str, Any]:
    def entry(name: str) -> dict[str, Any]:
        return {"file": f"a.{name}.bin", "dtype": "float32", "shape": [1, 2]}

    case = {"name": "a", "npz": "a.npz", "inputs": {"x": entry("x")}, "outputs": {"y": entry("y")}}
    source = {"name": "demo", "sha256": "0" * 64}
    head = {"format_version": 1, "model": "m.onnx", "source": source, "kind": "tensors", "tolerances": {"y": 1e-4}}
    return {**head, "cases": [case]}


def _write_checkpoints() -> None:
    mixed = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(2, dtype=torch.float16),
        "c": torch.zeros((), dtype=torch.int64),
        "d": torch.zeros(0, 3),
    }
    _keep("safetensors", "mixed.safetensors", save(mixed, {"format": "pt"}))
    weights = {
        "class_embed.weight": torch.zeros(3, 8),
        "query_embed.weight": torch.zeros(4, 8),
        "transformer.encoder.layers.0.linear1.weight": torch.zeros(4, 8),
        "transformer.decoder.layers.0.linear1.weight": torch.zeros(4, 8),
        "transformer.encoder.layers.0.self_attn.in_proj_weight": torch.zeros(6, 2),
        **{f"backbone.0.body.layer{s}.{b}.conv1.weight": torch.zeros(1) for s in (1, 2, 3, 4) for b in (0, 1)},
    }
    args = argparse.Namespace(nheads=2, dropout=0.1, dilation=False, pre_norm=False)
    _keep("pth", "resnet18.pth", _saved({"model": weights, "args": args}))
    _keep("pth", "old.pth", _saved({"model": weights, "args": vars(args)}, _use_new_zipfile_serialization=False))
    identity = {
        "options": TrainingOptions().to_dict(),
        "config": json.dumps(DetrConfig().to_dict()),
        "processor": {},
        "whole_backbone": False,
        "images": 3,
        "processes": 1,
        "source": None,
    }
    state = {"identity": identity, "stage": 0, "step": 3, "model": {"a": torch.zeros(2)}, "optimizer": None}
    state |= {"average": None, "precision": {}, "best": {"score": 0.5, "epoch": 1, "since": 0}, "stopped": False}
    _keep("state", "state.pt", _saved({**state, "arguments": {"data": {"root": "data"}, "skip_bad": False}}))
    for name, write_to in (("plain.npz", np.savez), ("compressed.npz", np.savez_compressed)):
        buffer = io.BytesIO()
        write_to(buffer, pixel_values=np.zeros((1, 3, 2, 2), np.float32), pixel_mask=np.ones((1, 2, 2), np.int64))
        _keep("arrays", name, buffer.getvalue())


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _write_annotations() -> None:
    mask = np.zeros((12, 16), bool)
    mask[2:6, 3:9] = True
    polygon = [[3.0, 2.0, 9.0, 2.0, 9.0, 6.0, 3.0, 6.0]]
    objects = [
        {"bbox": [3, 2, 6, 4], "category_id": 1, "area": 24, "iscrowd": 0, "segmentation": polygon},
        {"bbox": [3, 2, 6, 4.5], "category_id": 2, "area": 24.5, "iscrowd": 0, "segmentation": encode_rle(mask)},
        {"bbox": [0, 0, 3, 3], "category_id": 1, "area": 9, "iscrowd": 1, "segmentation": encode_compressed_rle(mask)},
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": 12, "width": 16} for n in (1, 2)]
    categories = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}]
    listed = [{"id": n, "image_id": 1 + n % 2, **item} for n, item in enumerate(objects)]
    coco = {"images": images, "annotations": listed, "categories": categories}
    _keep("coco", "instances.json", coco)
    _keep("evaluator", "instances.json", coco)
    segments = [{"id": 6579400, "category_id": 1, "area": 192, "bbox": [0, 0, 16, 12], "iscrowd": 0}]
    maps = [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in (1, 2)]
    _keep("panoptic", "panoptic.json", {"images": images, "annotations": maps, "categories": categories})
    _keep("rle", "plain.json", encode_rle(mask))
    _keep("rle", "compressed.json", encode_compressed_rle(mask))
    _keep("rle", "dense.json", encode_compressed_rle(np.indices((12, 16)).sum(0) % 2))
    for index, item in enumerate(objects):
        _keep("polygons", f"{index}.json", {"image_id": 1, "annotations": [item]})
    points = {**objects[0], "keypoints": [3.0, 2.0, 2, 9.0, 6.0, 1]}
    _keep("polygons", "keypoints.json", {"image_id": 1, "annotations": [points, points]})
    _keep("yolo-lines", "1.txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9\n")
    _keep("yolo-yaml", "list.yaml", "path: .\ntrain: images\nval: images\nnames:\n- a\n- b\n")
    _keep("yolo-yaml", "numbers.yaml", "train: [ images ]\nval: ../images\nnc: 2\nnames: { 0 : a, 1 : b }\n")


def _write_pictures() -> None:
    rgb = Image.fromarray((np.indices((9, 11)).sum(0)[..., None] * [9, 5, 3] % 256).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {"exif": exif}),
        "rgba.png": (rgb.convert("RGBA"), {}),
        "palette.png": (rgb.convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": 3}),
        "grey16.png": (Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 600), {}),
        "rgb.jpg": (rgb, {"exif": exif, "quality": 50}),
        "progressive.jpg": (rgb, {"progressive": True, "quality": 30}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"quality": 30}),
        "moving.gif": (rgb.convert("P"), {"save_all": True, "append_images": [rgb.rotate(90).convert("P")]}),
        "rgb.bmp": (rgb, {}),
        "bits.bmp": (rgb.convert("1"), {}),
        "plain.tiff": (rgb, {"exif": exif}),
        "packed.tiff": (rgb, {"compression": "tiff_lzw", "save_all": True, "append_images": [rgb]}),
        "deflated.tiff": (rgb.convert("LA"), {"compression": "tiff_adobe_deflate"}),
        "lossy.webp": (rgb, {"exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True}),
    }
    for name, (picture, options) in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, name.rpartition(".")[2].replace("jpg", "jpeg"), **options)
        for target in ("picture", "picture-size"):
            _keep(target, name, buffer.getvalue())


def tiny_graph(about: Metadata | None, masks: bool = False) -> bytes:
    """An ONNX file of a few nodes with the inputs and outputs of a DETR: 4 queries, 2 classes; with masks if asked for."""
    draw = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "shape"], ["row"]),
        helper.make_node("MatMul", ["queries", "row"], ["logits"]),
        helper.make_node("MatMul", ["logits", "to_box"], ["raw_boxes"]),
        helper.make_node("Sigmoid", ["raw_boxes"], ["pred_boxes"]),
    ]
    constants = [numpy_helper.from_array(np.array([-1, 1, 3], np.int64), "shape"), constant("queries", 4, 1)]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 3]),
        helper.make_tensor_value_info("pred_boxes", TensorProto.FLOAT, ["batch", 4, 4]),
    ]
    constants.append(constant("to_box", 3, 4))
    if masks:
        constants.append(constant("to_mask", 4, 3, 1, 1))
        nodes.append(helper.make_node("Conv", ["pixel_values", "to_mask"], ["pred_masks"], strides=[4, 4]))
        shape = ["batch", 4, "mask_height", "mask_width"]
        outputs.append(helper.make_tensor_value_info("pred_masks", TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "tiny", [pixels], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if about is not None:
        helper.set_model_props(model, {METADATA_KEY: about.to_json()})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _write_graphs() -> None:
    about = metadata()
    for target in ("onnx", "inspect"):
        _keep(target, "tiny.onnx", tiny_graph(about))
    _keep("inspect", "plain.onnx", tiny_graph(None))


if __name__ == "__main__":
    write()
