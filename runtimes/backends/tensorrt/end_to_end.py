"""End-to-end files in TensorRT: which of them it reads, and for which sizes of images an engine is built."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, batched, default_profiles
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import OPERATOR, Metadata

# Height and width of the images that an engine takes if nobody says otherwise: the smallest, the size that it is tuned for,
# which is that of most cameras, and the largest, 4K. Landscapes, and portraits.
_LANDSCAPE = ((32, 32), (1080, 1920), (2160, 3840))
_PORTRAIT = ((32, 32), (1920, 1080), (3840, 2160))
_FIRST = 10  # TensorRT's major version


def require_readable(file: str | Path, metadata: Metadata, major: Optional[int]) -> None:
    """Refuses an end-to-end file that TensorRT does not read, or was never seen to read.

    ONNX's Resize is refused: TensorRT has none that is antialiased. TensorRT before 10 is refused, because no end-to-end
    file was ever compiled with it.

    Args:
        file: its name, for the message.
        metadata: the file's.
        major: TensorRT's major version; None if it is not known, or it is TensorRT-RTX.

    Raises:
        ArtifactError: says what to do instead.
    """
    if metadata.end_to_end is None:
        return
    if metadata.end_to_end.resize == OPERATOR:
        raise ArtifactError(
            f"{file} resizes images with ONNX's operator Resize, and TensorRT does not read the antialiased one; "
            "export it again with: detr-export onnx --end-to-end --resize matmul"
        )
    if major is not None and major < _FIRST:
        raise ArtifactError(
            f"{file} is end to end, which was never tried with TensorRT {major}; update TensorRT to 10 or later, or export "
            "the file without --end-to-end"
        )


def profiles_of_file(metadata: Metadata, max_batch: int) -> list[EngineProfile]:
    """The profiles of a file if the user gives none.

    A plain file gets what the processor resizes images to. An end-to-end file gets the images before that: of 32x32 to
    2160x3840 pixels, or 3840x2160, and is tuned for 1080x1920 and 1920x1080. With `max_batch` above 1 there are two of each,
    one for single images and one for batches.

    Args:
        metadata: the file's.
        max_batch: the largest batch.

    Raises:
        InputError: as in `default_profiles`; or `max_batch` is below 1.
    """
    if metadata.end_to_end is None:
        return default_profiles(metadata.processor, max_batch)
    return batched([_LANDSCAPE, _PORTRAIT], max_batch)
