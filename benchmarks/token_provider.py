"""A token endpoint that costs little CPU: it responds after a fixed time, and refreshes any refresh token.

The sandbox checks and records every call, which takes more CPU than Backline's own work. Run it as a process:

    python -m benchmarks.token_provider --port 5002 --latency-ms 100
"""

import argparse
import asyncio
import json
from itertools import count

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class TokenEndpoint(asyncio.Protocol):
    """One connection. Requests on it are answered one after another, each after the same time."""

    serial = count(1)
    latency_seconds = 0.1

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection, to respond on it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Respond once a whole request has arrived."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        self._received = b""
        asyncio.get_running_loop().call_later(self.latency_seconds, self._respond)

    def _respond(self) -> None:
        token = f"BQ{next(self.serial):0198d}"
        members = {"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": "streaming"}
        body = json.dumps(members).encode()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_HEAD % (len(body), body))


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(port: int, latency_seconds: float) -> None:
    """Serve on loopback until the process is stopped."""
    TokenEndpoint.latency_seconds = latency_seconds
    server = await asyncio.get_running_loop().create_server(TokenEndpoint, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.token_provider")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency-ms", type=float, default=100)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.latency_ms / 1000))
