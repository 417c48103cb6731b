"""The three stages as Ray Data runs them, and what each asks of the cluster."""

from __future__ import annotations

from typing import Any, Optional

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.distributed import parts
from detr_export.runtimes.distributed.job import Job
from detr_export.runtimes.distributed.model import Description, ModelWorker
from detr_export.runtimes.distributed.reading import read_pictures
from detr_export.runtimes.errors import BackendError

_READER = 0.5  # CPUs of Ray's for a task that reads: not a whole one, see `pipeline`
_WRITER = 0.25


def pipeline(job: Job, about: Description, blocks: list[pa.Table], part: int, actors: int, resources: dict[str, Any]) -> Any:
    """The three stages. Ray Data's own defaults give the pictures of a worker that was killed to another one.

    Ray Data joins two stages that ask for the same resources. The first one must stay apart, or the actors decode pictures
    and their GPUs wait. So it asks for half a CPU.
    """
    stream: Any = ray.data.from_arrow(blocks)
    stream = stream.map_batches(
        read_pictures,
        batch_size=None,
        batch_format="pyarrow",
        fn_args=(job, about.preparation),
        num_cpus=_READER,
    )
    stream = stream.map_batches(
        ModelWorker,
        batch_size=1,  # a message; Ray Data wants a number where a GPU is asked for
        batch_format="pyarrow",
        fn_constructor_args=(job, about.digest),
        compute=ActorPoolStrategy(size=actors),
        **resources,
    )
    return stream.map_batches(
        parts.write_part,
        batch_size=part,
        batch_format="pyarrow",
        fn_args=(job,),
        num_cpus=_WRITER,
    )


def resources_of(device: str, threads: int, workers: Optional[int]) -> tuple[int, dict[str, Any]]:
    """How many actors there are, and what each asks of Ray.

    Raises:
        BackendError: the cluster has less.
    """
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if takes_threads(device):
        most = (cpus - 1) // threads  # one is left for reading and writing
        if (workers or 1) > most:
            raise BackendError(
                f"{workers or 1} workers of {threads} threads and one CPU for reading are more than the cluster's {cpus} "
                "CPUs; give less (--workers, --threads)"
            )
        return workers or most, {"num_cpus": threads}
    if (workers or 1) > gpus:
        raise BackendError(
            f"the device {device} needs a GPU for each of {workers or 1} workers, and the cluster has {gpus}; give less "
            "(--workers), or another device (--device)"
        )
    return workers or gpus, {"num_cpus": 1, "num_gpus": 1}


def takes_threads(device: str) -> bool:
    """Whether a worker runs its model on threads of the CPU."""
    return parse_device(device).kind in ("cpu", "openvino")
