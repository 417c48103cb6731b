"""Serves this folder to this machine alone: python serve.py [PORT]. Port 0 takes a free one."""

import sys
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Plain files, and the two headers that a browser wants to see before it gives a page threads."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}  # noqa: RUF012

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # or a model that was exported again would not be seen
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed: the page itself says what is missing."""


port = sys.argv[1] if len(sys.argv) > 1 else "8000"
try:
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), partial(Handler, directory=str(Path(__file__).parent)))
except (ValueError, OverflowError, OSError) as error:
    sys.exit(f"port {port} cannot be used: {error}; give another one: python serve.py 8080")
print(f"http://127.0.0.1:{server.server_port}/  Ctrl-C ends it", flush=True)
with suppress(KeyboardInterrupt):
    server.serve_forever()
