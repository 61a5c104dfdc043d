"""Clients that keep connections open, and send requests at certain times."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

SAMPLES_PER_SECOND = 20


@dataclass(frozen=True)
class Response:
    """A response, and how many seconds it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    took: float


class Tab:
    """A persistent connection of a browser, for one request at a time."""

    def __init__(self, port: int, cookie: str = "", headers: Mapping[str, str] | None = None) -> None:
        sent = {"Cookie": cookie, "X-Requested-With": "benchmark"} if headers is None else headers
        self._port = port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> Response:
        """Send a GET request."""
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self._headers}\r\n".encode())
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (field.partition(": ") for field in fields if field)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Response(int(status.split()[1]), headers, body, time.perf_counter() - began)

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()


async def run_concurrently(
    tabs: list[Tab], do: Callable[[int, Tab], Awaitable[None]], seconds: float
) -> None:
    """Let all tabs `do` something repeatedly, for so many seconds. Cancel what is running at the end."""

    async def repeat(number: int, tab: Tab) -> None:
        while True:
            await do(number, tab)

    tasks = [asyncio.create_task(repeat(number, tab)) for number, tab in enumerate(tabs)]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for tab in tabs:
        tab.close()
    for task in done:
        task.result()


def quantile(values: list[float], part: float) -> float:
    """Return a quantile: the median if `part` is 0.5."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def measure_session_times(port: int, cookie: str, seconds: float) -> list[float]:
    """Request the session at a fixed rate. Return the seconds that each request took."""

    async def one(number: int) -> float:
        await asyncio.sleep(number / SAMPLES_PER_SECOND)
        tab = Tab(port, cookie)
        response = await tab.get("/api/session")
        tab.close()
        assert response.status == 200, response
        return response.took

    async def run() -> list[float]:
        return await asyncio.gather(*map(one, range(int(seconds * SAMPLES_PER_SECOND))))

    return asyncio.run(run())
