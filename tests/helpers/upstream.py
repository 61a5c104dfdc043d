"""A Web API that records requests, and responds as a test wants.

    with running_upstream() as upstream:
        upstream.replies(Reply(401), Reply(200, b"{}"))

The sandbox behaves like Spotify. This server shows exactly what the gateway forwards. By default, a response
contains the number of calls so far, and each consent is another person's.
"""

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from tests.helpers.flows import connect
from tests.helpers.sandbox_client import SandboxClient

JSON = "application/json"


LONG = 120.0


@dataclass(frozen=True)
class Received:
    """A request."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def name(self) -> str:
        """Method and target, such as `GET me/player?market=SE`."""
        return f"{self.method} {self.target.removeprefix('/v1/')}"

    @property
    def token(self) -> str | None:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Reply:
    """A response. Status 0 closes the connection instead."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str | None = JSON
    headers: tuple[tuple[str, str], ...] = ()


def problem_of_spotify(status: int, message: str, reason: str | None = None) -> Reply:
    """Return an error in the Web API's usual format."""
    members = {"status": status, "message": message, **({"reason": reason} if reason else {})}
    return Reply(status, json.dumps({"error": members}).encode())


class Upstream:
    def __init__(self, url: str) -> None:
        self.root_url = url
        self.url = f"{url}/v1"
        self.calls: list[Received] = []
        self.handshakes = 0
        """The number of connections so far."""
        self.reply: Callable[[Received], Reply] | None = None
        """If set, returns the response to a call. It may block."""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        """The response if `reply` is not set. Without `body`, the body contains the number of calls."""
        self._changed = threading.Condition()
        self._holding = False
        self._held = self._people = 0
        self._connections: set[socket.socket] = set()

    def replies(self, *replies: Reply) -> None:
        """Respond with these, one after another. The last one is repeated."""
        left = list(replies)

        def reply(_: Received) -> Reply:
            with self._changed:
                return left.pop(0) if len(left) > 1 else left[0]

        self.reply = reply

    def is_profile_of(self, spotify_id: str) -> None:
        """Respond with this person's profile, for a consent."""
        self.replies(Reply(200, json.dumps({"id": spotify_id}).encode()))

    def hold(self) -> None:
        """Hold all calls until `release`, which is also when responses are made."""
        with self._changed:
            self._holding = True

    def release(self) -> None:
        with self._changed:
            self._holding = False
            self._changed.notify_all()

    def wait_for_held(self, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._held >= count, LONG), f"waited for {count} calls"

    def received(self, call: Received) -> Reply:
        if self.reply is not None:
            with self._changed:
                self.calls.append(call)
            return self.reply(call)
        return self._next_profile() if call.name == "GET me" else self._default_reply(call)

    def connected(self, connection: socket.socket) -> None:
        with self._changed:
            self.handshakes += 1
            self._connections.add(connection)

    def close_connections(self) -> None:
        """Close idle connections, as a server does after a while."""
        with self._changed:
            idle, self._connections = self._connections, set()
        for connection in idle:
            with suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)

    def _next_profile(self) -> Reply:
        with self._changed:
            self._people += 1
            return Reply(200, json.dumps({"id": f"person-{self._people}"}).encode())

    def _default_reply(self, call: Received) -> Reply:
        with self._changed:
            self.calls.append(call)
            number = len(self.calls)
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._holding, LONG)
            self._held -= 1
            headers = dict(self.headers)
            body = json.dumps({"call": number}).encode() if self.body is None else self.body
            return Reply(self.status, body, headers.pop("Content-Type", JSON), tuple(headers.items()))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise, each response takes 40 ms
    server: "_Server"

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(LONG)
            self.request.do_handshake()
        self.server.upstream.connected(self.request)
        super().setup()

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        target = self.requestline.split(" ")[1]  # `self.path` is normalized
        reply = self.server.upstream.received(Received(self.command, target, self.headers, body))
        if reply.status:
            self._send(reply)
        else:
            self.close_connection = True

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if reply.content_type is not None:
            self.send_header("Content-Type", reply.content_type)
        if reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        with suppress(ConnectionError):  # the client may close the connection
            self.wfile.write(reply.body)

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    upstream: Upstream
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, *args: object) -> None:
        """Ignore clients that disconnect or reject the certificate: tests do that on purpose."""


@contextmanager
def running_upstream(port: int = 0, *, certificate: Path | None = None) -> Iterator[Upstream]:
    """Listen on the loopback interface, over TLS with `certificate.pem` and `key.pem` of a folder."""
    with _Server(("127.0.0.1", port), _Handler) as server:
        if certificate is not None:
            server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
        scheme = "http" if certificate is None else "https"
        server.upstream = Upstream(f"{scheme}://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.upstream
        finally:
            server.upstream.release()
            server.shutdown()
            thread.join()


def connect_through(
    client: FlaskClient, sandbox: SandboxClient, upstream: Upstream, person: str = "mira_t_42"
) -> str:
    """Connect Spotify as this person. Returns their access token."""
    upstream.is_profile_of(person)
    connect(client, sandbox, person=person)
    [profile_call] = [call for call in upstream.calls if call.target == "/v1/me"]
    upstream.calls.clear()
    upstream.replies(Reply())
    assert profile_call.token is not None
    return profile_call.token
