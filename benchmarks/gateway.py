"""What the gateway promises in numbers, measured with real processes: gunicorn, Redis, a sandbox, a database.

    .venv/bin/python -m benchmarks.gateway [--mariadb] [--threads 32] [--seconds 20] [tabs] [hang] ...

It needs redis-server (and mariadbd), takes three minutes, and ends all that it has started. Without a name
it measures everything:

    tabs      1,000 tabs of one person ask for /me/player, each again one second after its answer. What it
              costs Spotify, what is refused, how old the oldest answer is. Spotify takes 0.1 s.
    sluggish  The same with a Spotify that takes 0.7 s.
    slow      200 callers, half of them on one connection and half on 20, wait for a Spotify that takes 5 s
              for a call, and come back when Retry-After says, or one second after an answer. What
              GET /api/session takes meanwhile, and when idle: it is asked for 20 times a second, whether
              the one before has been answered or not.
    hang      200 callers, half of them of the Web API and half with dead tokens, while both hosts of Spotify
              hang. What GET /api/session takes meanwhile.
    burst     One person reads 40 different things at once, at several latencies. What is refused, and what
              GET /api/session takes meanwhile for somebody else.
    hits      Requests per second that are answered with a shared answer, against GET /api/session's.

The callers run on the same machine, so compare the ratios, and not the numbers with another machine's.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import requests

from tests.conftest import ANY_PORT_REDIRECT_URI, SETTINGS
from tests.helpers.sandbox_client import SandboxClient, answer_of, running_sandbox
from tests.helpers.servers import migrate, running_mariadb, running_redis, running_server

V1 = "/api/spotify/v1"
TABS, CALLERS, LINKS, SPOTIFY_SECONDS, SAMPLES_PER_SECOND = 1000, 200, 20, 5, 20
LONGEST, READS = 30.0, 40


@dataclass(frozen=True)
class World:
    port: int
    sandbox: SandboxClient
    aside: ProcessPoolExecutor  # a process for callers who must not be late because of other callers

    def connect(self, person: str) -> str:
        """Connect Spotify as a visitor. Returns the session's cookie."""
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update({"X-Requested-With": "benchmark", "Accept": "application/json"})
            authorize = f"http://127.0.0.1:{self.port}/api/spotify/authorize"
            url = http.get(authorize, timeout=LONGEST).json()["authorize_url"]
            query = answer_of(self.sandbox.consent(url, person=person))
            answer = http.get(authorize, params=query, timeout=LONGEST)
            answer.raise_for_status()
            return f"backline_session={http.cookies['backline_session']}"


@contextmanager
def running_world(*, mariadb: bool, threads: int) -> Iterator[World]:
    with ExitStack() as stack:
        # Not forked: there are threads by then.
        aside = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
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
        del settings["SPOTIFY_REDIRECT_URI"]  # the server's own
        migrate(settings | {"SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI})
        server = stack.enter_context(running_server(settings, workers=2, threads=threads))
        yield World(server.port, sandbox, aside)


# Callers


@dataclass(frozen=True)
class Got:
    status: int
    headers: dict[str, str]
    body: bytes
    took: float


class Tab:
    """A browser's connection, which is kept. One request at a time."""

    def __init__(self, port: int, cookie: str) -> None:
        self._port, self._cookie = port, cookie
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> Got:
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", f"Cookie: {self._cookie}"]
        writer.write("\r\n".join([*lines, "X-Requested-With: benchmark", "", ""]).encode())
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (field.partition(": ") for field in fields if field)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Got(int(status.split()[1]), headers, body, time.perf_counter() - began)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def together(tabs: list[Tab], do: Callable[[int, Tab], Awaitable[None]], seconds: float) -> None:
    """Let all of them do it, over and over, for so long. What is under way in the end is given up."""

    async def again_and_again(number: int, tab: Tab) -> None:
        while True:
            await do(number, tab)

    tasks = [asyncio.create_task(again_and_again(number, tab)) for number, tab in enumerate(tabs)]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for tab in tabs:
        tab.close()
    for task in done:
        task.result()


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def told(name: str, value: object, wanted: str = "") -> None:
    print(f"  {name:<52} {value!s:<22} {wanted}", flush=True)


# What is measured


def measure_tabs(world: World, seconds: float, spotify_seconds: float = 0.1) -> None:
    print(f"{TABS:,} tabs of one person, GET /me/player once a second, Spotify takes {spotify_seconds} s")
    cookie = world.connect("mira_t_42")
    world.sandbox.settings(latency_ms={"api": int(spotify_seconds * 1000), "token": 0})
    http = {"Cookie": cookie, "X-Requested-With": "benchmark"}
    url = f"http://127.0.0.1:{world.port}{V1}/me/player"
    requests.put(f"{url}/seek?position_ms=0", headers=http, timeout=LONGEST).raise_for_status()
    # How far the song is says when Spotify was asked.
    song_began = time.time() - requests.get(url, headers=http, timeout=LONGEST).json()["progress_ms"] / 1000
    got: list[Got] = []
    ages: list[float] = []

    async def poll(number: int, tab: Tab) -> None:
        if tab not in begun:
            begun.add(tab)
            await asyncio.sleep(number / TABS)
        answer = await tab.get(f"{V1}/me/player")
        if answer.status == 200:
            ages.append(
                time.time() - song_began - json.loads(answer.body)["progress_ms"] / 1000 - answer.took
            )
        got.append(answer)
        await asyncio.sleep(1)

    begun: set[Tab] = set()
    last = world.sandbox.calls()[-1]["n"]
    began = time.monotonic()
    asyncio.run(together([Tab(world.port, cookie) for _ in range(TABS)], poll, seconds))
    took = time.monotonic() - began
    calls = len(world.sandbox.calls(path="/v1/me/player", after=last))
    refused = sum(answer.status != 200 for answer in got)
    times = [answer.took for answer in got]
    told("requests per second, really offered", f"{len(got) / took:.0f}", f"of {TABS} wished")
    told("calls to Spotify per second", f"{calls / took:.2f}", "wanted: 0.90 to 1.10")
    told("requests per call", f"{len(got) / max(1, calls):.0f}")
    told("answers other than 200", f"{refused} {dict(Counter(a.status for a in got))}", "wanted: 0")
    told("oldest answer when it was asked for, seconds", f"{max(ages):.2f}", "wanted: 1.0 at the most")
    told("seconds to an answer, p50 / p99", f"{quantile(times, 0.5):.2f} / {quantile(times, 0.99):.2f}")
    told("X-Cache", dict(Counter(answer.headers.get("x-cache", "") for answer in got)))


def measure_slow(world: World, seconds: float) -> None:
    print(f"GET /api/session while {CALLERS} callers wait for a Spotify of {SPOTIFY_SECONDS} s")
    people = [person["id"] for person in world.sandbox.seed(LINKS)]
    cookies = [world.connect(person) for person in ["mira_t_42", *people]]
    idle = world.aside.submit(sample, world.port, cookies[0], seconds).result()
    got: list[Got] = []

    async def call(number: int, tab: Tab) -> None:
        if tab not in begun:
            begun.add(tab)
            await asyncio.sleep(number / CALLERS)
        path = f"{V1}/me/player" if number % 2 else f"{V1}/search?q={number}&type=track"
        answer = await tab.get(path)
        got.append(answer)
        await asyncio.sleep(int(answer.headers.get("retry-after", "1")))

    begun: set[Tab] = set()
    tabs = [
        Tab(world.port, cookies[0] if number % 2 else cookies[1 + number // 2 % LINKS])
        for number in range(CALLERS)
    ]
    last = world.sandbox.calls()[-1]["n"]
    world.sandbox.fault(on="api", kind="slow", seconds=SPOTIFY_SECONDS, times=None)
    try:
        sampling = world.aside.submit(sample, world.port, cookies[0], seconds)
        began = time.monotonic()
        asyncio.run(together(tabs, call, seconds))
        took = time.monotonic() - began
        busy = sampling.result()
    finally:
        world.sandbox.clear_faults()
    told("requests per second of the callers", f"{len(got) / took:.0f}")
    refusals = [answer.took for answer in got if answer.status == 503]
    calls = len([call for call in world.sandbox.calls(after=last) if call["path"].startswith("/v1/")])
    later = busy[SAMPLES_PER_SECOND:]  # by then it is known to be slow
    for name, times in (("idle", idle), ("all along", busy), ("after the first second", later)):
        shown = " / ".join(f"{quantile(times, part) * 1000:.0f}" for part in (0.5, 0.9, 0.99, 1))
        told(f"GET /api/session, ms, {name}: p50 / p90 / p99 / max", shown, "wanted: p99 below 100")
    told("ratio of the medians", f"{quantile(busy, 0.5) / quantile(idle, 0.5):.1f}")
    told("answers to the callers", dict(Counter(answer.status for answer in got)))
    if refusals:
        told(
            "ms to a 503, p50 / p99",
            f"{quantile(refusals, 0.5) * 1000:.0f} / {quantile(refusals, 0.99) * 1000:.0f}",
        )
    told(
        "calls to Spotify, and how many at a time",
        f"{calls}, {calls * SPOTIFY_SECONDS / took:.1f}",
        "16 places in each worker, or half of its threads",
    )


def measure_hang(world: World, seconds: float) -> None:
    print(f"GET /api/session while {CALLERS} callers wait, and both hosts of Spotify hang")
    people = [str(person["id"]) for person in world.sandbox.seed(2 * LINKS)]
    other, living = world.connect("mira_t_42"), [world.connect(person) for person in people[:LINKS]]
    world.sandbox.settings(expires_in=1)
    dead = [world.connect(person) for person in people[LINKS:]]
    got: Counter[str] = Counter()

    async def call(number: int, tab: Tab) -> None:
        path = f"{V1}/search?q={number}&type=track" if number % 2 else "/api/spotify/token"
        answer = await tab.get(path)
        got[f"{path.partition('?')[0]} {answer.status}"] += 1
        await asyncio.sleep(int(answer.headers.get("retry-after", "1")))

    tabs = [
        Tab(world.port, (living if number % 2 else dead)[number // 2 % LINKS]) for number in range(CALLERS)
    ]
    time.sleep(1)  # until the tokens are dead
    for host in ("api", "refresh"):
        world.sandbox.fault(on=host, kind="park", times=None)
    try:
        sampling = world.aside.submit(sample, world.port, other, seconds)
        asyncio.run(together(tabs, call, seconds))
        times = sampling.result()
    finally:
        world.sandbox.clear_faults()
    shown = " / ".join(f"{quantile(times, part) * 1000:.0f}" for part in (0.5, 0.99, 1))
    told("GET /api/session, ms, p50 / p99 / max", shown, "wanted: p99 below 100")
    told("answers to the callers", dict(got))


def measure_burst(world: World, seconds: float) -> None:
    del seconds  # each burst takes as long as it takes
    mine, other = world.connect("mira_t_42"), world.connect(str(world.sandbox.seed(1)[0]["id"]))
    for latency in (0.1, 0.4, 0.7, 1.5):
        world.sandbox.settings(latency_ms={"api": int(latency * 1000), "token": 0})
        print(f"{READS} different reads of one person at once, Spotify takes {latency} s")
        sampling = world.aside.submit(sample, world.port, other, 5)
        got = asyncio.run(burst(world.port, mine, f"{latency}"))
        busy = sampling.result()
        told("answers", dict(Counter(answer.status for answer in got)), f"wanted: 404, {READS} times")
        told("seconds until the last one", f"{max(answer.took for answer in got):.1f}", "wanted: below 15")
        shown = " / ".join(f"{quantile(busy, part) * 1000:.0f}" for part in (0.5, 0.99))
        told("GET /api/session of another person, ms, p50 / p99", shown, "wanted: p99 below 100")


async def burst(port: int, cookie: str, name: str) -> list[Got]:
    tabs = [Tab(port, cookie) for _ in range(READS)]
    try:
        return await asyncio.gather(
            *(tab.get(f"{V1}/tracks/{name}-{number}") for number, tab in enumerate(tabs))
        )
    finally:
        for tab in tabs:
            tab.close()


def sample(port: int, cookie: str, seconds: float) -> list[float]:
    """Ask for the session so many times a second. Returns what each took."""

    async def one(number: int) -> float:
        await asyncio.sleep(number / SAMPLES_PER_SECOND)
        tab = Tab(port, cookie)
        answer = await tab.get("/api/session")
        tab.close()
        assert answer.status == 200, answer
        return answer.took

    async def run() -> list[float]:
        return await asyncio.gather(*map(one, range(int(seconds * SAMPLES_PER_SECOND))))

    return asyncio.run(run())


def measure_hits(world: World, seconds: float) -> None:
    print("A shared answer against GET /api/session, 16 connections")
    cookie = world.connect("mira_t_42")
    done: Counter[str] = Counter()
    paths = {"shared": f"{V1}/me/player", "session": "/api/session"}
    for name in ["shared", "session"] * 3:

        async def ask(_: int, tab: Tab, name: str = name) -> None:
            answer = await tab.get(paths[name])
            done[name if answer.status == 200 else f"{name}, refused"] += 1

        asyncio.run(together([Tab(world.port, cookie) for _ in range(16)], ask, seconds / 6))
    for name in paths:
        told(f"requests per second, {name}", f"{done[name] / (seconds / 2):.0f}")
        told("refused", done[f"{name}, refused"])
    told("ratio", f"{done['shared'] / done['session']:.2f}")


MEASURES: dict[str, Callable[[World, float], None]] = {
    "tabs": measure_tabs,
    "sluggish": lambda world, seconds: measure_tabs(world, seconds, 0.7),
    "slow": measure_slow,
    "hang": measure_hang,
    "burst": measure_burst,
    "hits": measure_hits,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mariadb", action="store_true", help="on MariaDB instead of SQLite")
    parser.add_argument("--threads", type=int, default=32, help="threads of each worker")
    parser.add_argument("--seconds", type=float, default=20, help="how long each is measured; 60 at the most")
    parser.add_argument("what", nargs="*", help=", ".join(MEASURES))
    asked: Any = parser.parse_args()
    if unknown := set(asked.what) - set(MEASURES):
        parser.error(f"there is no {', '.join(unknown)}")
    for name in asked.what or MEASURES:
        with running_world(mariadb=asked.mariadb, threads=asked.threads) as world:
            MEASURES[name](world, min(asked.seconds, 60))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
    sys.exit()
