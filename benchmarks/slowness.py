"""What Backline does while Spotify is slow or hangs, and how many calls its shared responses save."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from benchmarks.deployment import Deployment, running_backline, running_servers
from benchmarks.load import (
    SAMPLES_PER_SECOND,
    Response,
    Tab,
    measure_session_times,
    quantile,
    run_concurrently,
)
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from benchmarks.routes import V1

TABS, CALLERS, TOKEN_CALLERS, CONNECTIONS, READS = 1000, 200, 120, 20, 40
SPOTIFY_SECONDS = 5
PLAYER = f"{V1}/me/player"
P99_MS = 100  # of GET /api/session, whatever Spotify does


def run_tabs(options: Options) -> Section:
    """Poll the player in a thousand tabs of one person."""
    seconds = 5 if options.quick else 20
    responses, ages = list[Response](), list[float]()
    with _backline() as backline:
        cookie = backline.connect("mira_t_42")
        backline.sandbox.settings(latency_ms={"api": 100, "token": 0})
        song_began = time.time() - backline.get(PLAYER, cookie).json()["progress_ms"] / 1000
        started = set[Tab]()

        async def poll(number: int, tab: Tab) -> None:
            if tab not in started:
                started.add(tab)
                await asyncio.sleep(number / TABS)
            response = await tab.get(PLAYER)
            if response.status == 200:
                position = json.loads(response.body)["progress_ms"] / 1000
                ages.append(time.time() - song_began - position - response.took)
            responses.append(response)
            await asyncio.sleep(1)

        last = backline.sandbox.calls()[-1]["n"]
        progress(f"{TABS:,} tabs")
        began = time.monotonic()
        asyncio.run(run_concurrently([Tab(backline.port, cookie) for _ in range(TABS)], poll, seconds))
        took = time.monotonic() - began
        calls = len(backline.sandbox.calls(path="/v1/me/player", after=last))
    failed = sum(response.status != 200 for response in responses)
    figures = [
        Figure("requests", len(responses) / took, "/s"),
        Figure("calls to Spotify", calls / took, "/s", at_most=1.1),
        Figure("requests that failed", failed, at_most=0),
        Figure("age of the oldest response", max(ages), "s"),
    ]
    statuses = dict(Counter(response.status for response in responses))
    notes = [
        f"{TABS:,} tabs of one person read the player, each again after a second. Spotify takes 0.1 s.",
        f"Statuses of the responses: {statuses}.",
    ]
    return Section("Shared responses", figures, notes)


def run_hang(options: Options) -> Section:
    """Request the session while callers wait for a token from an accounts service that hangs."""
    return _while_hanging(options, ("refresh",), "Accounts service hangs", TOKEN_CALLERS, reads=False)


def run_outage(options: Options) -> Section:
    """Request the session while both hosts of Spotify hang."""
    return _while_hanging(options, ("api", "refresh"), "Both hosts of Spotify hang", CALLERS, reads=True)


def _while_hanging(
    options: Options, hosts: tuple[str, ...], title: str, callers: int, *, reads: bool
) -> Section:
    seconds = 6 if options.quick else 20
    statuses = Counter[str]()
    with _backline() as backline:
        people = [str(person["id"]) for person in backline.sandbox.seed(2 * CONNECTIONS)]
        other = backline.connect("mira_t_42")
        live = [backline.connect(person) for person in people[:CONNECTIONS]]
        backline.sandbox.settings(expires_in=1)
        expired = [backline.connect(person) for person in people[CONNECTIONS:]]
        time.sleep(1.1)  # until the tokens have expired

        async def call(number: int, tab: Tab) -> None:
            is_read = reads and number % 2
            path = f"{V1}/search?q={number}&type=track" if is_read else "/api/spotify/token"
            response = await tab.get(path)
            statuses[f"{path.partition('?')[0]}: {response.status}"] += 1
            await asyncio.sleep(int(response.headers.get("retry-after", "1")))

        for host in hosts:
            backline.sandbox.fault(on=host, kind="park", times=None)
        progress(f"{callers} callers")
        tabs = [
            Tab(backline.port, (live if reads and number % 2 else expired)[number // 2 % CONNECTIONS])
            for number in range(callers)
        ]
        with _sampler() as sampler:
            sampling = sampler.submit(measure_session_times, backline.port, other, seconds)
            asyncio.run(run_concurrently(tabs, call, seconds))
            times = sampling.result()
        backline.sandbox.clear_faults()
    notes = [
        f"GET /api/session, 20 times a second, while {callers} callers wait; 2 workers, 8 threads.",
        f"Responses to the callers: {dict(statuses)}.",
    ]
    return Section(title, _session_figures(times), notes)


def run_slow(options: Options) -> Section:
    """Request the session while callers read from a Web API that takes five seconds."""
    seconds = 8 if options.quick else 20
    statuses = Counter[int]()
    with _backline() as backline:
        people = [str(person["id"]) for person in backline.sandbox.seed(CONNECTIONS)]
        cookies = [backline.connect(person) for person in ["mira_t_42", *people]]
        backline.sandbox.settings(latency_ms={"api": SPOTIFY_SECONDS * 1000, "token": 0})

        async def call(number: int, tab: Tab) -> None:
            path = PLAYER if number % 2 else f"{V1}/search?q={number}&type=track"
            response = await tab.get(path)
            statuses[response.status] += 1
            await asyncio.sleep(int(response.headers.get("retry-after", "1")))

        progress(f"{CALLERS} callers")
        tabs = [
            Tab(backline.port, cookies[0] if number % 2 else cookies[1 + number // 2 % CONNECTIONS])
            for number in range(CALLERS)
        ]
        with _sampler() as sampler:
            sampling = sampler.submit(measure_session_times, backline.port, cookies[0], seconds)
            asyncio.run(run_concurrently(tabs, call, seconds))
            times = sampling.result()
    notes = [
        f"GET /api/session, 20 times a second, while {CALLERS} callers read from a Web API",
        f"that takes {SPOTIFY_SECONDS} s.",
        f"Statuses of the responses to the callers: {dict(statuses)}.",
    ]
    return Section("Slow Web API", _session_figures(times), notes)


def run_burst(options: Options) -> Section:
    """Let one person read forty different things at once, while another requests the session."""
    figures = []
    with _backline() as backline:
        mine = backline.connect("mira_t_42")
        other = backline.connect(str(backline.sandbox.seed(1)[0]["id"]))
        for latency in (0.1,) if options.quick else (0.1, 0.4, 0.7, 1.5):
            progress(f"{READS} reads, Spotify takes {latency} s")
            backline.sandbox.settings(latency_ms={"api": int(latency * 1000), "token": 0})
            with _sampler() as sampler:
                sampling = sampler.submit(measure_session_times, backline.port, other, 5)
                responses = asyncio.run(_read_at_once(backline.port, mine, f"{latency * 1000:.0f}"))
                p99 = quantile(sampling.result(), 0.99) * 1000
            rejected = sum(response.status != 404 for response in responses)
            last = max(response.took for response in responses)
            name = f"requests that failed, Spotify takes {latency} s"
            figures.append(Figure(name, rejected, at_most=0, more={"last s": last, "session p99 ms": p99}))
    notes = [f"{READS} reads of tracks that do not exist (404) at once, over one connection."]
    return Section("Burst of one person", figures, notes)


async def _read_at_once(port: int, cookie: str, name: str) -> list[Response]:
    tabs = [Tab(port, cookie) for _ in range(READS)]
    try:
        ids = [f"{name}x{number}".zfill(22) for number in range(READS)]
        reads = (tab.get(f"{V1}/tracks/{track_id}") for track_id, tab in zip(ids, tabs, strict=True))
        return await asyncio.gather(*reads)
    finally:
        for tab in tabs:
            tab.close()


def _session_figures(times: list[float]) -> list[Figure]:
    late = times[2 * SAMPLES_PER_SECOND :]  # by then, Spotify is known to be slow
    return [
        Figure("GET /api/session, p50", quantile(times, 0.5) * 1000, "ms"),
        Figure("GET /api/session, p99", quantile(times, 0.99) * 1000, "ms", at_most=P99_MS),
        Figure("GET /api/session, p99 after 2 s", quantile(late, 0.99) * 1000, "ms", at_most=P99_MS),
        Figure("GET /api/session, slowest", max(times) * 1000, "ms"),
    ]


@contextmanager
def _backline() -> Iterator[Deployment]:
    with running_servers() as servers, running_backline(servers) as backline:
        yield backline


@contextmanager
def _sampler() -> Iterator[ProcessPoolExecutor]:
    """Start a process for a client that others must not slow down. It is not forked: there are threads."""
    with ProcessPoolExecutor(1, get_context("spawn")) as sampler:
        sampler.submit(time.time).result()
        yield sampler
