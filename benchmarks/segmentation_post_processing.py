"""How long it takes to turn 100 masks into one segmentation map: this project's numpy against transformers' torch.

Why: after the network, merging the masks is the longest step of segmenting an image; the reference makes a stack of
full-size masks (100 x 800 x 1066 float32 = 340 MB) and then walks over it several times for every query.

What: instance and panoptic segmentation of one image, masks of 200x267 scaled to 800x1066, with 100 and with 20 of the
100 queries kept. Both sides get the same arrays, each in its own kind, and start from raw logits. Results are compared
before anything is timed. Rounds are interleaved (reference, ours, reference, ours, ...) so that a machine that slows
down or is shared slows both. torch may use all its threads; the numpy side runs in one.

    python -m benchmarks.segmentation_post_processing [--rounds 15] [--torch-threads N]

The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.oracle import import_transformers
from runtimes.errors import DetrError, VerificationError
from runtimes.processing.segmentation import post_process_instance_segmentation, post_process_panoptic_segmentation

QUERIES = 100
CLASSES = 250  # the classes of the COCO panoptic checkpoints
MASK_SIZE = (200, 267)  # a quarter of the target, as the mask head makes them
TARGET_SIZE = (800, 1066)  # COCO's usual 480x640 after the processor's resizing
KEPT = (100, 20)
FUSED_LABELS = frozenset(range(125, CLASSES))  # half of the classes
MAX_DIFFERING_PIXELS = 1e-4  # share; two masks that tie within float32 rounding may fall either way
SCORE_TOLERANCE = 1e-5


def spread_out_outputs(kept: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs of an imaginary model: one noisy ellipse a query, 4 to 20 % of the image height across, anywhere in it.

    Args:
        kept: how many of the queries have a class; the others say "no object".
        seed: of the random generator.

    Returns:
        logits float32 (1, 100, 251) and pred_masks float32 (1, 100, 200, 267), in [-13, 10] or so.
    """
    random = np.random.default_rng(seed)
    height, width = MASK_SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = np.empty((1, QUERIES, height, width), dtype=np.float32)
    for query in range(QUERIES):
        center_y, center_x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(0.02, 0.1, size=2) * height
        distance = np.hypot((y - center_y) / radius_y, (x - center_x) / radius_x)
        masks[0, query] = np.clip(6 * (1 - distance), -12, 8) + random.normal(0, 0.3, (height, width))
    logits = random.normal(0, 1, (1, QUERIES, CLASSES + 1)).astype(np.float32)
    logits[0, :, CLASSES] = 12
    queries = random.permutation(QUERIES)[:kept]
    logits[0, queries, random.integers(0, CLASSES, kept)] = 14 + random.uniform(0, 3, kept)
    return {"logits": logits, "pred_masks": masks}


def differing_pixels(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """The share of pixels with another segment id.

    Raises:
        VerificationError: more than `MAX_DIFFERING_PIXELS` of them, or segments that are not the same.
    """
    share = float(np.mean(ours["segmentation"] != reference["segmentation"].numpy()))
    same = len(ours["segments_info"]) == len(reference["segments_info"]) and all(
        {**mine, "score": 0} == {**theirs, "score": 0} and abs(mine["score"] - theirs["score"]) <= SCORE_TOLERANCE
        for mine, theirs in zip(ours["segments_info"], reference["segments_info"], strict=True)
    )
    if share > MAX_DIFFERING_PIXELS or not same:
        raise VerificationError(
            f"{share:.2e} of the pixels differ (at most {MAX_DIFFERING_PIXELS:.0e} expected) and the segments are "
            f"{'the same' if same else 'not the same'}; run: pytest tests/runtimes/test_segmentation.py"
        )
    return share


def compare(processor: Any, task: str, kept: int, rounds: int) -> dict[str, Any]:
    """Check one case for equal results, then time both sides."""
    import torch

    arrays = spread_out_outputs(kept)
    tensors = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    sizes = [TARGET_SIZE]

    def run_ours() -> list[dict[str, Any]]:
        if task == "instance":
            return post_process_instance_segmentation(arrays, target_sizes=sizes)
        return post_process_panoptic_segmentation(arrays, label_ids_to_fuse=FUSED_LABELS, target_sizes=sizes)

    def run_reference() -> list[dict[str, Any]]:
        if task == "instance":
            return processor.post_process_instance_segmentation(tensors, target_sizes=sizes)
        return processor.post_process_panoptic_segmentation(tensors, label_ids_to_fuse=set(FUSED_LABELS), target_sizes=sizes)

    ours, reference = run_ours()[0], run_reference()[0]  # also the warm-up
    share = differing_pixels(ours, reference)
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    for _ in range(rounds):
        for name, run in (("reference", run_reference), ("ours", run_ours)):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    minimum = {name: 1e3 * min(values) for name, values in seconds.items()}
    return {
        "task": task,
        "kept_queries": kept,
        "segments": len(ours["segments_info"]),
        "differing_pixels_share": share,
        "reference_median_ms": round(median["reference"], 2),
        "ours_median_ms": round(median["ours"], 2),
        "reference_minimum_ms": round(minimum["reference"], 2),
        "ours_minimum_ms": round(minimum["ours"], 2),
        "speedup_of_medians": round(median["reference"] / median["ours"], 2),
        "speedup_of_minima": round(minimum["reference"] / minimum["ours"], 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all cases, print a table and the JSON line; 0 when done, 1 when the oracle is missing or disagrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds a case")
    parser.add_argument("--torch-threads", type=int, help="threads of the reference; torch's own choice when left out")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.torch_threads is not None and options.torch_threads < 1):
        parser.error("--rounds and --torch-threads take 1 or more")
    try:
        transformers = import_transformers()
        import torch

        if options.torch_threads is not None:
            torch.set_num_threads(options.torch_threads)
        processor = transformers.DetrImageProcessor()
        print(f"{'task':<10}{'kept':>5}{'reference ms':>14}{'ours ms':>10}{'medians':>10}{'minima':>9}")
        cases = []
        for task in ("instance", "panoptic"):
            for kept in KEPT:
                case = compare(processor, task, kept, options.rounds)
                cases.append(case)
                print(
                    f"{task:<10}{kept:>5}{case['reference_median_ms']:>14.1f}{case['ours_median_ms']:>10.1f}"
                    f"{case['speedup_of_medians']:>9.1f}x{case['speedup_of_minima']:>8.1f}x",
                    flush=True,
                )
    except DetrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "queries": QUERIES,
        "mask_size_px": MASK_SIZE,
        "target_size_px": TARGET_SIZE,
        "rounds": options.rounds,
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cases": cases,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
