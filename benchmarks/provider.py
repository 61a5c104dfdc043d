"""A token endpoint and nothing else, for rates that the sandbox does not reach: 100 ms for each refresh.

`python -m benchmarks.provider PORT`. `GET /` returns how many refreshes there were, and the times of the
first and the last one.
"""

import asyncio
import json
import sys
import time
from typing import Any

LATENCY_SECONDS = 0.1
TOKEN = {"access_token": "a" * 200, "token_type": "Bearer", "scope": "streaming", "expires_in": 3600}


class Provider:
    """Counts refreshes, and serves any number of connections."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until the client closes it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = TOKEN if head.startswith(b"POST") else self.counts()
                if body is TOKEN:
                    await reader.readexactly(_length(head))
                    self.times.append(time.time())
                    await asyncio.sleep(LATENCY_SECONDS)
                writer.write(_response(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def counts(self) -> dict[str, Any]:
        """Return the number of refreshes since the last call, and when the first and the last one began."""
        times, self.times = sorted(self.times), []
        return {"refreshes": len(times), "first": times[:1], "last": times[-1:]}


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _response(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _run(port: int) -> None:
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1])))
