"""Serves a DETR with Ray Serve: one model a replica, pictures of one size as one batch, bounded queues, autoscaling.

serve run ray_serve:build model=model.onnx
curl -H 'Content-Type: image/jpeg' --data-binary @a.jpg 'http://127.0.0.1:8000/?threshold=0.7'
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import BaseModel
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.requests import Request
from starlette.responses import JSONResponse

from detr_export import Detections, Predictor
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.serving.bodies import picture_bytes
from detr_export.runtimes.serving.pictures import decode_picture
from detr_export.runtimes.serving.refusals import refusal_of
from detr_export.runtimes.thresholds import require_shares

MAX_BYTES, MAX_PIXELS = 20 << 20, 50_000_000  # of a body, and of a picture
MAX_BATCH = 8  # pictures of one run of the model


@dataclass(frozen=True, eq=False)
class Job:
    """What a client wants to know."""

    picture: Image.Image
    threshold: float


class Detr:
    """A replica."""

    def __init__(self, model: str, device: str, threads: int) -> None:
        self.predictor = Predictor.load(model, device, threads)
        self.failure: BackendError | None = None  # of the last run

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            threshold = threshold_of(request)
            data = await picture_bytes(request, MAX_BYTES)
            picture = await asyncio.to_thread(decode_picture, data, MAX_PIXELS)
            found = await self.find(Job(picture, threshold))
            if isinstance(found, Exception):
                raise found
            return JSONResponse(found.to_dict())
        except Exception as error:
            refusal = refusal_of(error)  # the statuses and texts of detr-export serve
            return JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.01)
    async def find(self, jobs: list[Job]) -> list[Detections | Exception]:
        """Pictures of one size run together. Others would need padding, which changes the results of a DETR."""
        groups: dict[object, list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.picture.size, job.threshold), []).append(job)
        found: dict[Job, Detections | Exception] = {}
        for group in groups.values():
            found |= await asyncio.to_thread(self.run, group)
        return [found[job] for job in jobs]

    def run(self, jobs: list[Job]) -> dict[Job, Detections | Exception]:
        """Runs jobs together; one by one if that fails, so that an error reaches only the client who causes it."""
        try:
            found = self.predictor.detect([job.picture for job in jobs], jobs[0].threshold, batch_size=len(jobs))
            self.failure = None
            return dict(zip(jobs, found, strict=True))
        except Exception as error:
            if len(jobs) > 1:
                return {job: self.run([job])[job] for job in jobs}
            self.failure = error if isinstance(error, BackendError) else None
            return {jobs[0]: error}

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose backend fails again and again, such as a GPU after a fault."""
        if self.failure is not None:
            raise self.failure

    def __del__(self) -> None:
        """Ray Serve calls this when the replica has answered what it had."""
        if hasattr(self, "predictor"):
            self.predictor.close()


def threshold_of(request: Request) -> float:
    """The lowest score that is returned, from the query."""
    text = request.query_params.get("threshold", "0.5")
    try:
        threshold = float(text)
    except ValueError as error:
        raise InputError(f"threshold is {text!r}; expected a number from 0 to 1") from error
    require_shares(threshold=threshold)
    return threshold


class Arguments(BaseModel, extra="forbid"):
    """What can stand behind `serve run ray_serve:build`."""

    model: str
    device: str = "cpu"
    threads: int = 2  # of the model in a replica
    replicas: int = 1  # at most
    queue: int = 32  # requests that wait when all replicas are full; those who come then get 429


def build(arguments: Arguments) -> serve.Application:
    """The application."""
    deployment = serve.deployment(
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": 0 if arguments.device == "cpu" else 1},
        max_ongoing_requests=2 * MAX_BATCH,  # of a replica: one batch runs, the next one is decoded
        max_queued_requests=arguments.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": arguments.replicas,
            "target_ongoing_requests": MAX_BATCH,
        },
        graceful_shutdown_timeout_s=30,
    )
    return deployment(Detr).bind(str(Path(arguments.model).resolve()), arguments.device, arguments.threads)
