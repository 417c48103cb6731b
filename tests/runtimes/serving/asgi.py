"""Calls a FastAPI application without a network, so that a test decides when which part of a request arrives."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """One request; `task` ends when it is answered."""

    messages: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    sent: list[dict[str, Any]] = field(default_factory=list)
    task: asyncio.Task[None] = None  # type: ignore[assignment]

    def body(self, data: bytes, more: bool = False) -> None:
        """Sends a part of the body."""
        self.messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        """Closes the connection."""
        self.messages.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> tuple[int, Any]:
        """The status and the JSON document."""
        await asyncio.wait_for(self.task, 30)
        return self.status, json.loads(self.sent[1]["body"])

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}


def begin(app: Any, method: str, path: str, data: bytes | None = None, query: str = "", **headers: str) -> Call:
    """Sends the head of a request, and its whole body if `data` is given."""
    call = Call()
    named = {"content-type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def send(message: dict[str, Any]) -> None:
        call.sent.append(message)

    if data is not None:
        call.body(data)
    call.task = asyncio.ensure_future(app(scope, call.messages.get, send))
    return call


async def until(condition: Any) -> None:
    """Waits until `condition()` is true; a test that waits in vain fails."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never became true")
