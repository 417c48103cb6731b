"""Writes engines for the double of TensorRT, with the documents beside them that detr-export writes, for the tests.

Usage: make_fake_engine.py FOLDER
"""

import hashlib
import json
import sys
from pathlib import Path

from make_fake_model import METADATA

from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, sidecar_path
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import TensorSpec

TENSORS = {"image": "uint8", "scores": "float32", "labels": "int64", "boxes": "float32"}
PROFILES = [
    [[1, 2, 2, 3], [1, 8, 8, 3], [4, 16, 16, 3]],
    [[1, 2, 2, 3], [1, 4, 4, 3], [1, 8, 8, 3]],
    [[1, 2, 2, 3], [1, 8, 8, 3], [1, 8, 8, 3]],
]


def plan(tensors: dict | None = None, host_code: bool = False, box_size: int = 4) -> bytes:
    """The content of an engine, as the double reads it."""
    content = {"tensors": tensors or TENSORS, "profiles": PROFILES, "host_code": host_code, "box_size": box_size}
    return json.dumps(content).encode()


def write(path: Path, content: bytes, **changes: object) -> None:
    """Writes an engine and the document beside it. `changes` are values of the document."""
    sidecar = EngineSidecar(
        sha256=hashlib.sha256(content).hexdigest(),
        source_sha256="0" * 64,
        build_key="0" * 64,
        library="tensorrt",
        library_version="10.3.0.26",
        cuda="12.5",
        gpu="NVIDIA L4",
        targets=((8, 9),),
        precision="fp32",
        fallback=None,
        version_compatible=False,
        hardware_compatible=False,
        profiles=("1x2x2:1x8x8:4x16x16",),
        inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
        outputs=(TensorSpec("scores", "float32", ("batch", 3)),),
        layers={"fp32": 1},
        attestation=None,
        kernels=None,
        verified=True,
        metadata=Metadata(task="detection", id2label={}, processor={}, pixel_mask=False),
    )
    document = json.loads(sidecar.to_json())
    document["metadata"] = METADATA
    path.write_bytes(content)
    sidecar_path(path).write_text(json.dumps({**document, **changes}))


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    write(folder / "right.engine", plan())
    write(folder / "panoptic.engine", plan({**TENSORS, "masks": "float32"}))
    write(folder / "narrow-labels.engine", plan({**TENSORS, "labels": "int32"}))
    write(folder / "compatible.engine", plan(host_code=True), version_compatible=True)
    write(folder / "hardware.engine", plan(), hardware_compatible=True, targets=[[8, 0]])

    write(folder / "rtx.engine", plan(), library="tensorrt_rtx")
    write(folder / "newer.engine", plan(), format_version=3)
    write(folder / "older.engine", plan(), format_version=1)
    write(folder / "other-digest.engine", plan(), sha256="0" * 64)
    write(folder / "no-library.engine", plan(), library=None)
    write(folder / "bad-version.engine", plan(), library_version="unknown")
    write(folder / "prepared.engine", plan(), metadata={**METADATA, "input": "float"})
    write(folder / "half.engine", plan({**TENSORS, "scores": "float16"}))
    write(folder / "other-boxes.engine", plan(box_size=5))
    write(folder / "damaged.engine", b"this is no plan")
    (folder / "alone.engine").write_bytes(plan())
    (folder / "not-json.engine").write_bytes(plan())
    (folder / "not-json.engine.json").write_text("{")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
