"""A camera on the network, as small as one can be: RTSP over TCP with an MPEG transport stream inside."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType

PACKET = 188 * 7  # bytes of the transport stream in one packet of RTP
DESCRIPTION = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"


class RtspServer:
    """Serves one transport stream to one client after another on a port of this machine.

    Args:
        shares: for each client, how much of the stream it gets before the connection is closed. Later ones get all of it.
        user: `name:password` that clients must have.
        stays: whether a connection stays open, and silent, after its last packet.
        pause: seconds between two packets.
    """

    def __init__(
        self,
        stream: bytes,
        shares: Sequence[float] = (),
        user: str | None = None,
        stays: bool = False,
        pause: float = 0.002,
    ) -> None:
        self.clients = 0  # that were played to
        self._stream, self._shares, self._user, self._stays, self._pause = stream, shares, user, stays, pause
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # nobody came, or the client has left
                client, _ = self._listener.accept()
                with client:
                    client.settimeout(5)
                    self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        file = client.makefile("rb")
        with file:
            while not self._stop.is_set():
                request = file.readline().split()
                if not request:
                    return
                headers = {}
                while line := file.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.strip().lower()] = value.strip()
                client.sendall(self._answer(request[0].decode(), headers))
                if request[0] == b"PLAY":
                    self._play(client)
                    return

    def _answer(self, method: str, headers: dict[str, str]) -> bytes:
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif self._user is not None and headers.get("authorization") != self._basic(self._user):
            lines = ["RTSP/1.0 401 Unauthorized", lines[1], 'WWW-Authenticate: Basic realm="camera"']
        elif method == "DESCRIBE":
            lines += ["Content-Type: application/sdp", f"Content-Length: {len(DESCRIPTION)}"]
            body = DESCRIPTION
        elif method == "SETUP":
            lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        else:
            lines.append("Session: 1")
        return "\r\n".join([*lines, "", body]).encode()

    @staticmethod
    def _basic(user: str) -> str:
        return "Basic " + base64.b64encode(user.encode()).decode()

    def _play(self, client: socket.socket) -> None:
        share = self._shares[self.clients] if self.clients < len(self._shares) else 1.0
        self.clients += 1
        packets = range(0, round(len(self._stream) * share), PACKET)
        for number, start in enumerate(packets):
            if self._stop.is_set():
                return
            payload = self._stream[start : start + PACKET]
            header = bytes([0x80, 33]) + number.to_bytes(2, "big") + (number * 900).to_bytes(4, "big") + b"\0\0\0\1"
            client.sendall(b"$\0" + (len(header) + len(payload)).to_bytes(2, "big") + header + payload)
            time.sleep(self._pause)
        while self._stays and not self._stop.is_set():
            time.sleep(0.02)
