"""Segmentation models in two files: a detector, and its mask head, which draws the masks of some queries only.

A mask is the same whichever others are drawn with it, and a caller wants those of the queries that are sure of an object:
ten, and not a hundred. So the detector runs once for a batch, the caller chooses queries by their logits, and the mask head
runs for those. Beside `model.onnx` lies `model.masks.onnx`, and the detector's metadata hold its digest.

What the detector gives for its mask head has the same name in both files. Of `query_states` the mask head gets the rows of
the chosen queries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Optional, TypeVar

import numpy as np

from detr_export.runtimes.detr_interface import require_fitting
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import require_regular, sha256_of_file
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Choose, Session, TensorSpec

QUERY_STATES = "query_states"  # (B, Q, d_model), the decoder's last hidden states; (B, N, d_model) of the N that are chosen
KEYS = "mask_keys"  # (B, d_model, h, w)
SHARED = "mask_features"  # (B, d_model + heads, h, w)
PYRAMID = ("mask_pyramid_1", "mask_pyramid_2", "mask_pyramid_3")  # (B, C, h, w) each, coarsest first
FEATURE_MASK = "feature_mask"  # (B, h, w), 1 = real, 0 = padding; only of a model that takes padded images
INPUTS = (QUERY_STATES, KEYS, SHARED, *PYRAMID, FEATURE_MASK)  # of a mask head, in this order
MASKS = "pred_masks"
TASK = "masks"  # of the mask head's own metadata

_AnyPath = TypeVar("_AnyPath", bound=PurePath)
_FEATURES = re.compile(r"ceil\((height|width)/(\d+)\)")
_MEMORY = 256 * 2**20  # bytes that the largest tensors of one run of the mask head may take
_LARGE_TENSORS = 3  # as large as the finest layer's input, which are in memory at the same time


class TwoGraphSession(Session):
    """A detector and its mask head as one session. `run` draws the masks of all queries, as a file with one graph does.

    The mask head runs for some queries of one image at a time, so that its memory is bounded.

    Args:
        detector: gives what the mask head takes. This session closes both.
        mask_head: maps that to `pred_masks`.

    Raises:
        ArtifactError: the detector does not give what the mask head takes, by names, dtypes, ranks or sizes.
    """

    def __init__(self, detector: Session, mask_head: Session) -> None:
        inside = {spec.name: spec for spec in mask_head.inputs}
        given = {spec.name: spec for spec in detector.outputs}
        missing = sorted(set(inside) - set(given))
        if missing or {spec.name for spec in mask_head.outputs} != {MASKS} or QUERY_STATES not in inside:
            raise ArtifactError(
                f"the mask head takes {', '.join(sorted(inside))}, and the detector does not give "
                f"{', '.join(missing) or QUERY_STATES}; export both again: detr-export onnx"
            )
        for name in inside:
            require_fitting(detector.source, given[name], inside[name])
        if any(len(inside[name].shape) != rank for name, rank in ((QUERY_STATES, 3), (PYRAMID[-1], 4)) if name in inside):
            raise ArtifactError(f"{mask_head.source}: {QUERY_STATES} or {PYRAMID[-1]} has another rank; export both again")
        self.source = detector.source
        self._detector, self._mask_head = detector, mask_head
        self._features = [name for name in inside if name != QUERY_STATES]
        self.inputs = detector.inputs
        self.metadata = detector.metadata
        queries = given[QUERY_STATES].shape[1]
        masks = TensorSpec(MASKS, mask_head.outputs[0].dtype, ("batch", queries, "mask_height", "mask_width"))
        own = [spec for spec in detector.outputs if spec.name not in inside]
        self.outputs = (*own[:2], masks, *own[2:])

    @property
    def parts(self) -> tuple[Session, Session]:
        """The detector and the mask head."""
        return self._detector, self._mask_head

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.run_chosen(inputs, _all_queries)

    def run_chosen(self, inputs: Mapping[str, np.ndarray], choose: Choose) -> dict[str, np.ndarray]:
        outputs = self._detector.run(inputs)
        chosen = choose(outputs)
        states, finest = outputs[QUERY_STATES], outputs[PYRAMID[-1]]
        if states.ndim != 3 or finest.ndim != 4 or not chosen.shape == states.shape[:2] == (len(finest), states.shape[1]):
            raise ArtifactError(
                f"{self.source}: the run's {QUERY_STATES} have shape {states.shape} and {PYRAMID[-1]} {finest.shape}; "
                f"expected (batch, queries, d_model) and (batch, channels, height, width) for {chosen.shape} queries"
            )
        at_once = max(1, _MEMORY // (_LARGE_TENSORS * finest[0].size * np.dtype(np.float32).itemsize))
        # Zeros take no memory before they are written to.
        masks = np.zeros((*states.shape[:2], *finest.shape[2:]), dtype=self._mask_head.outputs[0].dtype)
        for image in range(len(states)):
            features = {name: outputs[name][image : image + 1] for name in self._features}
            wanted = np.flatnonzero(chosen[image])
            for start in range(0, len(wanted), at_once):
                some = wanted[start : start + at_once]
                drawn = self._mask_head.run({**features, QUERY_STATES: states[image : image + 1, some]})
                expected = (1, len(some), *masks.shape[2:])
                if drawn[MASKS].shape != expected:
                    raise ArtifactError(
                        f"{self._mask_head.source}: the run's {MASKS} have shape {drawn[MASKS].shape}; expected {expected}"
                    )
                masks[image, some] = drawn[MASKS][0]
        return {spec.name: masks if spec.name == MASKS else outputs[spec.name] for spec in self.outputs}

    def close(self) -> None:
        self._mask_head.close()
        self._detector.close()


def mask_head_file(file: _AnyPath) -> _AnyPath:
    """`model.masks.onnx` beside `model.onnx`, and `model.masks.engine` beside `model.engine`."""
    return file.with_name(f"{file.stem}.{TASK}{file.suffix}")


def with_mask_head(
    file: Path,
    session: Session,
    open_file: Callable[[Path], Session],
    digest_of: Callable[[Path], str] = sha256_of_file,
) -> Session:
    """Joins a session with its mask head, if its file is one of two.

    Args:
        file: the file.
        session: opened from it; closed if something is wrong.
        open_file: opens the mask head in the same way.
        digest_of: gives the SHA-256 of the ONNX file that a mask head is, or was built from.

    Raises:
        ArtifactError: the mask head is missing or another one's; or the file is itself a mask head.
        DetrError: as `open_file` raises.
    """
    wanted = None if session.metadata is None else session.metadata.mask_head
    try:
        require_no_mask_head(file, session.metadata)
        if wanted is None:
            return session
        mask_head = open_file(require_mask_head(file, wanted, digest_of))
    except BaseException:
        session.close()
        raise
    try:
        return TwoGraphSession(session, mask_head)
    except BaseException:
        mask_head.close()
        session.close()
        raise


def require_mask_head(file: Path, wanted: str, digest_of: Callable[[Path], str] = sha256_of_file) -> Path:
    """The file of a model's mask head; arguments as in `with_mask_head`, and the digest that the model names.

    Raises:
        ArtifactError: it is missing, or another one's.
    """
    beside = mask_head_file(file)
    if not os.path.lexists(beside):
        raise ArtifactError(f"{beside} is missing: {file.name} draws its masks with it; copy both into one folder")
    require_regular(beside, ArtifactError)
    if digest_of(beside) != wanted:
        raise ArtifactError(
            f"{beside} is not the mask head of {file.name}: its SHA-256 differs; copy both files of one export"
        )
    return beside


def require_no_mask_head(file: Path, metadata: Optional[Metadata]) -> None:
    """Refuses a mask head where a model is expected.

    Raises:
        ArtifactError: names the file that it belongs to, as far as its name shows it.
    """
    if metadata is not None and metadata.task == TASK:
        stem = file.stem
        whole = stem[: -len(TASK) - 1] if stem.endswith(f".{TASK}") else "MODEL"
        raise ArtifactError(f"{file} is the mask head of a model in two files; give the other one: {whole}{file.suffix}")


def size_of_dimension(name: str, sizes: Mapping[str, int]) -> Optional[int]:
    """The size of a dimension: one of `sizes`, or the side of a feature map, "ceil(height/32)". None for another name."""
    match = _FEATURES.fullmatch(name)
    return sizes.get(name) if match is None else -(-sizes[match[1]] // int(match[2]))


def _all_queries(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.ones(outputs[QUERY_STATES].shape[:2], dtype=bool)
