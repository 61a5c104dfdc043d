"""A Web API that answers as a test wants, where the sandbox is too well-behaved: what to cache, for example.

    with running_upstream() as upstream:
        env["SPOTIFY_API_URL"] = upstream.url
        upstream.headers = {"Cache-Control": "max-age=60"}

Each answer's body says the how manieth call it was. `/v1/me` introduces another person each time, for
`connect`, and does not count.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONG = 30.0


class Upstream:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self._changed = threading.Condition()
        self._calls: list[str] = []
        self._holds = False
        self._held = 0
        self._people = 0

    @property
    def calls(self) -> list[str]:
        """The calls so far, such as `GET me/player?market=SE`."""
        with self._changed:
            return list(self._calls)

    def hold(self) -> None:
        """Answer no call until `release`. What an answer says is decided when it is let go."""
        with self._changed:
            self._holds = True

    def release(self) -> None:
        with self._changed:
            self._holds = False
            self._changed.notify_all()

    def wait_for_held(self, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._held >= count, LONG), f"waited for {count} calls"

    def introduce(self) -> tuple[int, dict[str, str], bytes]:
        with self._changed:
            self._people += 1
            return 200, {}, json.dumps({"id": f"person-{self._people}"}).encode()

    def meet(self, call: str) -> tuple[int, dict[str, str], bytes]:
        with self._changed:
            self._calls.append(call)
            number = len(self._calls)
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._holds, LONG)
            self._held -= 1
            body = json.dumps({"call": number}).encode() if self.body is None else self.body
            return self.status, dict(self.headers), body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def handle_one(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/v1/me":
            status, headers, body = self.upstream.introduce()
        else:
            status, headers, body = self.upstream.meet(f"{self.command} {self.path.removeprefix('/v1/')}")
        self.send_response_only(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 - as http.server wants them named

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A caller who has gone is no news."""


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    """Serve in a thread of this process."""
    handler = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        handler.upstream = upstream = Upstream(server.server_address[1])  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield upstream
        finally:
            upstream.release()
            server.shutdown()
            thread.join()
