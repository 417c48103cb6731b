"""The gate of an engine: it must give the checkpoint's numbers at the corners of every profile.

Each profile is run at its smallest, its tuned and its largest size, with batches of one image repeated, where a mixed-up
batch would not show, and of different images with different paddings, where it would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detr_export.runtimes.backends.tensorrt.profiles import BatchSize, EngineProfile
from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session
from detr_export.verification.comparison import FP16_TOLERANCE, TOLERANCE, Case, Parity

# Eight bits cannot be judged tensor by tensor: this only catches what is broken; `detr-export evaluate` has the say.
INT8_TOLERANCE: Mapping[str, float] = {"logits": 2.0, "pred_boxes": 0.2, "pred_masks": 10.0, "cross_attention": 0.4}
TOLERANCES: Mapping[str, Mapping[str, float]] = {"fp32": TOLERANCE, "fp16": FP16_TOLERANCE, "int8": INT8_TOLERANCE}

# What --fallback tries, in this order: the layers that stay in fp32.
FALLBACKS = ("fp16", "fp32-attention", "fp32-transformer", "fp32")
_NEXT = {
    "fp16": "the attention",
    "fp32-attention": "the transformer",
    "fp32-transformer": "everything",
}


def engine_grid(profiles: Sequence[EngineProfile]) -> list[Case]:
    """The cases for profiles, each size once."""
    sizes = dict.fromkeys(size for profile in profiles for size in (profile.minimum, profile.optimum, profile.maximum))
    return [case for size in sizes for case in _cases(size)]


def _cases(size: BatchSize) -> list[Case]:
    batch, height, width = size
    full = Case(height, width, ((height, width),) * batch, identical=batch > 1)
    # Shorter and narrower by turns, and no two alike.
    padded = tuple(
        (max(1, height - index * height // (batch + 1)), width)
        if index % 2
        else (height, max(1, width - index * width // (batch + 1)))
        for index in range(batch)
    )
    if batch == 1:
        padded = ((max(1, 4 * height // 5), max(1, 3 * width // 4)),)
    return [full, Case(height, width, padded)]


def require_engine(parity: Parity, name: str, step: str) -> None:
    """Lets an engine pass or not.

    Args:
        parity: from `compare`.
        name: the engine, for the message.
        step: which of FALLBACKS it is.

    Raises:
        VerificationError: says how far it is off, and which layers to keep in fp32 next.
    """
    if parity.passed:
        return
    advice = (
        f"next keep {_NEXT[step]} in fp32, which --fallback tries by itself"
        if step in _NEXT
        else "this TensorRT computes the graph wrongly on this GPU: run detr-export doctor, and try another version"
    )
    raise VerificationError(f"{name} disagrees with its checkpoint: {parity.disagreement()}; {advice}")


def open_reference(metadata: Metadata, outputs: Sequence[str], checkpoint: str | None = None) -> Session:
    """The checkpoint in PyTorch, on the CPU, where convolutions are not rounded to TF32.

    Args:
        metadata: the file's.
        outputs: which outputs it has.
        checkpoint: which checkpoint; the one that the file names as its source when None.

    Raises:
        ArtifactError: the file names no source.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.graphs.description import describe
    from detr_export.loading import load_model
    from detr_export.modeling.deployed import DeployedModel
    from detr_export.runtimes.backends.torch_session import TorchSession

    source = checkpoint or metadata.source.get("name")
    if source is None:
        raise ArtifactError("the file does not say which checkpoint it came from; add --checkpoint CHECKPOINT")
    loaded = load_checkpoint(source)
    task = "segmentation" if "pred_masks" in outputs else "detection"
    model = DeployedModel(load_model(loaded, task), attentions="cross_attention" in outputs)
    return TorchSession(model, describe(loaded, metadata.pixel_mask, task=task), loaded.config.num_channels)
