"""The golden data of an exported file: a few small batches, and what the checkpoint answers to them in PyTorch's float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.options import ExportOptions
from detr_export.loading import reference_session
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import UINT8, Metadata
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.session import Session
from detr_export.verification.cases import Case, Feeds, fitting_cases, image_feeds, scale_and_pad
from detr_export.verification.comparison import Parity
from detr_export.verification.golden import TENSORS, GoldenCase
from detr_export.verification.golden.pictures import noise_picture, shapes_picture
from detr_export.verification.golden.writing import WrittenGolden, write_golden
from detr_export.verification.reference import reference_of
from detr_export.verification.tolerances import tolerance_of

# Batches of one and two; landscape, portrait, square and odd sizes; padded and not. All are small, because a panoptic DETR
# with 100 queries answers a pixel with 25 bytes of masks.
BATCHES: tuple[tuple[str, Case], ...] = (
    ("shapes", Case(144, 192, ((144, 192),))),
    ("shapes", Case(96, 128, ((96, 128), (71, 100)))),
    ("shapes", Case(64, 96, ((64, 96), (64, 96)))),
    ("noise", Case(97, 161, ((97, 161),))),
    ("noise", Case(64, 64, ((64, 64),))),
    ("noise", Case(160, 72, ((150, 61),))),
)
_PICTURES: dict[str, Callable[[int, int, int, int], np.ndarray]] = {"shapes": shapes_picture, "noise": noise_picture}
_FLOAT32_STEP = float(np.finfo(np.float32).eps)  # of a value of 1; no noise floor is below the step of the largest value
_SMALLEST = float(np.finfo(np.float32).tiny)


def write_tensor_golden(
    folder: str | Path,
    model_name: str,
    checkpoint: Checkpoint,
    options: ExportOptions,
    metadata: Metadata,
    parity: Parity | None,
) -> WrittenGolden:
    """Writes the golden data of an exported file. The file itself is not read: all comes from its checkpoint.

    Args:
        folder: where they are to be.
        model_name: name of the exported file.
        checkpoint: what it was exported from.
        options: how it was exported.
        metadata: its metadata.
        parity: how it compared with its checkpoint; None when it was not compared.

    Raises:
        ArtifactError: no batch fits the model, or the checkpoint's outputs are not finite.
        OutputError: as in `write_golden`.
    """
    with reference_session(
        checkpoint, task=options.task, attentions=options.attentions, pixel_mask=options.pixel_mask
    ) as session:
        float_dtype = "float16" if options.fp16_io else "float32"
        tolerances = tensor_tolerances(session, metadata, float_dtype, parity)
        cases = tensor_cases(session, metadata, float_dtype)
        return write_golden(folder, model_name, metadata.source, TENSORS, cases, tolerances, options.overwrite)


def tensor_cases(session: Session, metadata: Metadata, float_dtype: str = "float32") -> Iterator[GoldenCase]:
    """The cases of an exported file. Their inputs are the same on every machine, bit for bit.

    Args:
        session: the checkpoint in float32; it takes `pixel_mask` if the file is told what is padding.
        metadata: the file's.
        float_dtype: of the file's floating-point inputs, `float32` or `float16`. The checkpoint gets the rounded values.

    Raises:
        ArtifactError: no case fits the ranges of the model.
    """
    for name, feeds in _batches(session, metadata, float_dtype):
        yield GoldenCase(name, feeds.file, session.run(dict(feeds.checkpoint)))


def tensor_tolerances(
    session: TorchSession, metadata: Metadata, float_dtype: str = "float32", parity: Parity | None = None
) -> dict[str, float]:
    """How far a file may be from the golden outputs: the largest absolute difference, by output.

    The gate lets a file be some noise floors away from the float64 model. The golden outputs are of float32, so they are up
    to one more floor away. The floor is measured on the golden batches; a larger one that the gate found counts, too.

    Raises:
        ArtifactError: no case fits the ranges of the model, or the precision is unknown.
    """
    multiple = tolerance_of(metadata.precision).multiple
    assert multiple is not None  # no file is exported in a precision that has no floor
    floors = dict(parity.noise_floor) if parity is not None else {}
    reference = reference_of(session)
    for _, feeds in _batches(session, metadata, float_dtype):
        truth, noise = reference.measure(metadata.precision, feeds)
        for name, value in truth.items():
            step = _FLOAT32_STEP * float(np.abs(value).max())
            floors[name] = max(floors.get(name, _SMALLEST), noise[name], step)
    return {name: (multiple + 1) * floor for name, floor in floors.items()}


def _batches(session: Session, metadata: Metadata, float_dtype: str) -> Iterator[tuple[str, Feeds]]:
    """Names and arrays of the batches that a model takes."""
    channels = session.inputs[0].shape[1]
    assert isinstance(channels, int)
    fitting = [(kind, case) for kind, wanted in BATCHES for case in fitting_cases(metadata, [wanted])]
    if not fitting:
        raise ArtifactError(f"no golden batch fits the model's ranges {dict(metadata.ranges)}; leave --golden out")
    for seed, (kind, case) in enumerate(fitting):
        padded = any(size != (case.height, case.width) for size in case.valid)
        name = f"{kind}-{len(case.valid)}x{case.height}x{case.width}" + "-padded" * padded
        pictures = [_PICTURES[kind](case.height, case.width, channels, 8 * seed + index) for index in range(len(case.valid))]
        # What lies beyond an image's own size stays: a model must not see it.
        images = {"pixel_values": np.stack(pictures), "valid_sizes": np.array(case.valid, dtype=np.int64)}
        yield name, image_feeds(images, metadata) if metadata.input == UINT8 else _float_feeds(images, metadata, float_dtype)


def _float_feeds(images: dict[str, np.ndarray], metadata: Metadata, float_dtype: str) -> Feeds:
    """Images as a file that takes the processor's arrays gets them. All three sides get the same, rounded values."""
    if images["pixel_values"].shape[3] == 3:
        arrays = scale_and_pad(images, processor_from_dict(metadata.processor))
    else:
        arrays = _without_processor(images)
    if not metadata.pixel_mask:
        del arrays["pixel_mask"]
    given = {**arrays, "pixel_values": arrays["pixel_values"].astype(float_dtype)}
    rounded, exact = ({**given, "pixel_values": given["pixel_values"].astype(dtype)} for dtype in (np.float32, np.float64))
    return Feeds(given, rounded, exact)


def _without_processor(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images that are not RGB, so that no processor takes them: about -2 to 2, zero where padded, and a mask."""
    batch, height, width, _ = images["pixel_values"].shape
    mask = np.zeros((batch, height, width), dtype=np.int64)
    for index, (rows, columns) in enumerate(images["valid_sizes"]):
        mask[index, :rows, :columns] = 1
    pixels = (images["pixel_values"].transpose(0, 3, 1, 2).astype(np.float32) - 128) / 64
    return {"pixel_values": pixels * mask[:, None].astype(np.float32), "pixel_mask": mask}
