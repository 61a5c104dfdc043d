"""A deployment to measure, and clients that put load on it."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import requests

from tests.conftest import ANY_PORT_REDIRECT_URI, SETTINGS
from tests.helpers.sandbox_client import SandboxClient, callback_query, running_sandbox
from tests.helpers.servers import migrate, running_mariadb, running_redis, running_server

CLIENT_TIMEOUT = 30.0
SAMPLES_PER_SECOND = 20


@dataclass(frozen=True)
class Deployment:
    """Running servers, a sandbox, and a separate process for clients that others must not slow down."""

    port: int
    sandbox: SandboxClient
    sampler: ProcessPoolExecutor

    def connect(self, person: str) -> str:
        """Connect Spotify as a visitor. Return the Cookie header of the session."""
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update({"X-Requested-With": "benchmark", "Accept": "application/json"})
            authorize = f"http://127.0.0.1:{self.port}/api/spotify/authorize"
            url = http.get(authorize, timeout=CLIENT_TIMEOUT).json()["authorize_url"]
            query = callback_query(self.sandbox.consent(url, person=person))
            response = http.get(authorize, params=query, timeout=CLIENT_TIMEOUT)
            response.raise_for_status()
            return f"backline_session={http.cookies['backline_session']}"


@contextmanager
def running_deployment(*, mariadb: bool, threads: int) -> Iterator[Deployment]:
    """Start everything, and stop it at the end of the block."""
    with ExitStack() as stack:
        # Not forked, because there are threads.
        sampler = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        sandbox = stack.enter_context(running_sandbox([ANY_PORT_REDIRECT_URI]))
        home = stack.enter_context(tempfile.TemporaryDirectory())
        settings = {
            **SETTINGS,
            "DATABASE_URL": stack.enter_context(running_mariadb())
            if mariadb
            else f"sqlite:///{home}/backline.sqlite3",
            "REDIS_URL": stack.enter_context(running_redis()),
            "SPOTIFY_ACCOUNTS_URL": sandbox.accounts_url,
            "SPOTIFY_API_URL": sandbox.api_url,
        }
        del settings["SPOTIFY_REDIRECT_URI"]  # the server's own default
        migrate(settings | {"SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI})
        server = stack.enter_context(running_server(settings, workers=2, threads=threads))
        yield Deployment(server.port, sandbox, sampler)


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


def report(name: str, value: object, wanted: str = "") -> None:
    """Print one line of the results."""
    print(f"  {name:<52} {value!s:<22} {wanted}", flush=True)


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


async def run_at_rate(tabs: list[Tab], path: str, rate: float, seconds: float) -> list[float]:
    """Request a path at fixed times. Return the seconds from these times to the responses.

    A request that finds no idle connection waits, and its time counts from when it should have been sent.
    """
    idle: asyncio.Queue[Tab] = asyncio.Queue()
    for tab in tabs:
        await tab.get(path)  # opens the connection
        idle.put_nowait(tab)
    began = time.monotonic()

    async def one(number: int) -> float:
        due = began + number / rate
        tab = await idle.get()
        response = await tab.get(path)
        idle.put_nowait(tab)
        assert response.status == 200, response
        return time.monotonic() - due

    running = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        running.append(asyncio.create_task(one(number)))
    times = await asyncio.gather(*running)
    for tab in tabs:
        tab.close()
    return times
