"""The addresses of a server, as a FastAPI application."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Optional

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from detr_export.runtimes.serving.bodies import FIELD
from detr_export.runtimes.serving.identity import Identity
from detr_export.runtimes.serving.refusals import BAD_REQUEST, STOPPING, Refusal, refusal_of
from detr_export.runtimes.serving.service import Service

PREDICT = "/predict"
PAGE = Path(__file__).parent / "page"  # examples/web shows the same page with a model in the browser
_FILE = {"type": "string", "format": "binary"}
_BODY = {  # for openapi.json: FastAPI does not see what the service reads
    "required": True,
    "content": {
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        "multipart/form-data": {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _FILE}}},
    },
}


def make_app(service: Service, identity: Identity) -> FastAPI:
    """The application. The service must have been started; the caller closes it."""
    # The pages of FastAPI's own documentation load scripts from other servers.
    app = FastAPI(title="detr-export", version=identity.version, docs_url=None, redoc_url=None)
    requests = service.metrics.requests

    @app.post(PREDICT, summary="Find objects in a picture", response_class=Response, openapi_extra={"requestBody": _BODY})
    async def predict(
        request: Request,
        threshold: Optional[float] = Query(None, description="Lowest score that is returned, from 0 to 1."),
        task: Optional[str] = Query(None, description=f"One of {', '.join(identity.tasks)}."),
        format: Optional[str] = Query(None, description="json, or image, png or jpeg for a picture with the result drawn."),
    ) -> Response:
        response: Response
        try:
            answer = await service.answer(request, threshold, task, format)
            response = Response(answer.body, media_type=answer.media_type)
        except asyncio.CancelledError:  # the time to finish is over
            service.cut_short = True
            response = _refused(Refusal(STOPPING, "the server stopped before the result was there; ask another one"))
        except Exception as error:
            response = _refused(refusal_of(error))
        requests.labels(str(response.status_code)).inc()
        return response

    @app.get("/health", summary="Whether the server takes requests, and its model")
    async def health() -> JSONResponse:
        status = {"status": "stopping" if service.stopping else "ok", **identity.to_dict()}
        return JSONResponse(status, STOPPING if service.stopping else 200)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if request.url.path == PREDICT:
            requests.labels(str(BAD_REQUEST)).inc()
        first = error.errors()[0]
        return _refused(Refusal(BAD_REQUEST, f"{first['loc'][-1]} is {first.get('input')!r}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def nothing_there(request: Request, error: HTTPException) -> JSONResponse:
        if request.url.path == PREDICT and request.method != "POST":  # the static files do not know of it
            error = HTTPException(405, "Method Not Allowed", {"Allow": "POST"})
        text = f"{request.method} {request.url.path}: {error.detail}; expected POST {PREDICT}, GET /health or GET /metrics"
        return JSONResponse({"error": text}, error.status_code, error.headers)

    # The page asks /health, and then sends its pictures to /predict.
    app.mount("/", StaticFiles(directory=service.options.front or PAGE, html=True))
    return app


def _refused(refusal: Refusal) -> JSONResponse:
    document: dict[str, Any] = {"error": str(refusal)}
    return JSONResponse(document, refusal.status, refusal.headers)
