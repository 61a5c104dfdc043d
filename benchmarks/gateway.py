"""Measure what the gateway promises, with real processes: gunicorn, Redis, a sandbox, and a database.

    .venv/bin/python -m benchmarks.gateway [--mariadb] [--threads 32] [--seconds 20] [tabs] [hang] ...

It needs redis-server (and mariadbd), takes three minutes, and stops everything that it started. By default,
it runs all measurements:

    tabs      1,000 tabs of one person request /me/player, again one second after each response: calls to
              Spotify, failed requests, and the age of the oldest response. Spotify takes 0.1 s.
    sluggish  The same, while Spotify takes 0.7 s.
    slow      200 callers, half of them on one connection and half on 20, wait for a Spotify that takes 5 s
              per call. They return after Retry-After, or one second after a response. Measures how long
              GET /api/session takes meanwhile, and when idle, at 20 requests a second.
    hang      200 callers, half of them of the Web API and half with expired tokens, while both hosts of
              Spotify hang. Measures how long GET /api/session takes meanwhile.
    burst     One person reads 40 different things at once, at several latencies. Measures failed requests,
              and how long GET /api/session of another person takes meanwhile.
    hits      Requests per second that are served from the cache, compared with GET /api/session.

The callers run on the same machine, so compare ratios, and not numbers from different machines.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import requests

from benchmarks.load import (
    CLIENT_TIMEOUT,
    SAMPLES_PER_SECOND,
    Deployment,
    Response,
    Tab,
    measure_session_times,
    quantile,
    report,
    run_concurrently,
    running_deployment,
)

V1 = "/api/spotify/v1"
TABS, CALLERS, CONNECTIONS, SPOTIFY_SECONDS, READS = 1000, 200, 20, 5, 40


def measure_tabs(deployment: Deployment, seconds: float, spotify_seconds: float = 0.1) -> None:
    """Poll the player in many tabs of one person."""
    print(f"{TABS:,} tabs of one person, GET /me/player once a second, Spotify takes {spotify_seconds} s")
    cookie = deployment.connect("mira_t_42")
    deployment.sandbox.settings(latency_ms={"api": int(spotify_seconds * 1000), "token": 0})
    http = {"Cookie": cookie, "X-Requested-With": "benchmark"}
    url = f"http://127.0.0.1:{deployment.port}{V1}/me/player"
    requests.put(f"{url}/seek?position_ms=0", headers=http, timeout=CLIENT_TIMEOUT).raise_for_status()
    # The progress of the song shows when Spotify created a response.
    song_began = (
        time.time() - requests.get(url, headers=http, timeout=CLIENT_TIMEOUT).json()["progress_ms"] / 1000
    )
    responses: list[Response] = []
    ages: list[float] = []

    async def poll(number: int, tab: Tab) -> None:
        if tab not in started:
            started.add(tab)
            await asyncio.sleep(number / TABS)
        response = await tab.get(f"{V1}/me/player")
        if response.status == 200:
            ages.append(
                time.time() - song_began - json.loads(response.body)["progress_ms"] / 1000 - response.took
            )
        responses.append(response)
        await asyncio.sleep(1)

    started: set[Tab] = set()
    last = deployment.sandbox.calls()[-1]["n"]
    began = time.monotonic()
    asyncio.run(run_concurrently([Tab(deployment.port, cookie) for _ in range(TABS)], poll, seconds))
    took = time.monotonic() - began
    calls = len(deployment.sandbox.calls(path="/v1/me/player", after=last))
    failed = sum(response.status != 200 for response in responses)
    times = [response.took for response in responses]
    report("requests per second", f"{len(responses) / took:.0f}", f"wanted: {TABS}")
    report("calls to Spotify per second", f"{calls / took:.2f}", "wanted: 0.90 to 1.10")
    report("requests per call", f"{len(responses) / max(1, calls):.0f}")
    report("responses other than 200", f"{failed} {dict(Counter(a.status for a in responses))}", "wanted: 0")
    report("age of the oldest response, seconds", f"{max(ages):.2f}", "wanted: at most 1.0")
    report("seconds to a response, p50 / p99", f"{quantile(times, 0.5):.2f} / {quantile(times, 0.99):.2f}")
    report("X-Cache", dict(Counter(response.headers.get("x-cache", "") for response in responses)))


def measure_slow(deployment: Deployment, seconds: float) -> None:
    """Request the session while callers wait for a slow Spotify."""
    print(f"GET /api/session while {CALLERS} callers wait for Spotify, which takes {SPOTIFY_SECONDS} s")
    people = [person["id"] for person in deployment.sandbox.seed(CONNECTIONS)]
    cookies = [deployment.connect(person) for person in ["mira_t_42", *people]]
    idle = deployment.sampler.submit(measure_session_times, deployment.port, cookies[0], seconds).result()
    responses: list[Response] = []

    async def call(number: int, tab: Tab) -> None:
        if tab not in started:
            started.add(tab)
            await asyncio.sleep(number / CALLERS)
        path = f"{V1}/me/player" if number % 2 else f"{V1}/search?q={number}&type=track"
        response = await tab.get(path)
        responses.append(response)
        await asyncio.sleep(int(response.headers.get("retry-after", "1")))

    started: set[Tab] = set()
    tabs = [
        Tab(deployment.port, cookies[0] if number % 2 else cookies[1 + number // 2 % CONNECTIONS])
        for number in range(CALLERS)
    ]
    last = deployment.sandbox.calls()[-1]["n"]
    deployment.sandbox.fault(on="api", kind="slow", seconds=SPOTIFY_SECONDS, times=None)
    try:
        sampling = deployment.sampler.submit(measure_session_times, deployment.port, cookies[0], seconds)
        began = time.monotonic()
        asyncio.run(run_concurrently(tabs, call, seconds))
        took = time.monotonic() - began
        busy = sampling.result()
    finally:
        deployment.sandbox.clear_faults()
    report("requests per second of the callers", f"{len(responses) / took:.0f}")
    _report_session_times(idle, busy)
    _report_responses(responses)
    calls = len([call for call in deployment.sandbox.calls(after=last) if call["path"].startswith("/v1/")])
    shown = f"{calls}, {calls * SPOTIFY_SECONDS / took:.1f}"
    report("calls to Spotify, and how many at once", shown, "16 slots in each worker, or half of its threads")


def _report_session_times(idle: list[float], busy: list[float]) -> None:
    later = busy[SAMPLES_PER_SECOND:]  # by then, it is known to be slow
    for name, times in (("idle", idle), ("all", busy), ("after the first second", later)):
        shown = " / ".join(f"{quantile(times, part) * 1000:.0f}" for part in (0.5, 0.9, 0.99, 1))
        report(f"GET /api/session, ms, {name}: p50 / p90 / p99 / max", shown, "wanted: p99 below 100")
    report("ratio of the medians", f"{quantile(busy, 0.5) / quantile(idle, 0.5):.1f}")


def _report_responses(responses: list[Response]) -> None:
    report("responses to the callers", dict(Counter(response.status for response in responses)))
    if rejected := [response.took for response in responses if response.status == 503]:
        shown = " / ".join(f"{quantile(rejected, part) * 1000:.0f}" for part in (0.5, 0.99))
        report("ms to a 503, p50 / p99", shown)


def measure_hang(deployment: Deployment, seconds: float) -> None:
    """Request the session while both hosts of Spotify hang."""
    print(f"GET /api/session while {CALLERS} callers wait, and both hosts of Spotify hang")
    people = [str(person["id"]) for person in deployment.sandbox.seed(2 * CONNECTIONS)]
    other, living = (
        deployment.connect("mira_t_42"),
        [deployment.connect(person) for person in people[:CONNECTIONS]],
    )
    deployment.sandbox.settings(expires_in=1)
    dead = [deployment.connect(person) for person in people[CONNECTIONS:]]
    responses: Counter[str] = Counter()

    async def call(number: int, tab: Tab) -> None:
        path = f"{V1}/search?q={number}&type=track" if number % 2 else "/api/spotify/token"
        response = await tab.get(path)
        responses[f"{path.partition('?')[0]} {response.status}"] += 1
        await asyncio.sleep(int(response.headers.get("retry-after", "1")))

    tabs = [
        Tab(deployment.port, (living if number % 2 else dead)[number // 2 % CONNECTIONS])
        for number in range(CALLERS)
    ]
    time.sleep(1)  # until the tokens have expired
    for host in ("api", "refresh"):
        deployment.sandbox.fault(on=host, kind="park", times=None)
    try:
        sampling = deployment.sampler.submit(measure_session_times, deployment.port, other, seconds)
        asyncio.run(run_concurrently(tabs, call, seconds))
        times = sampling.result()
    finally:
        deployment.sandbox.clear_faults()
    shown = " / ".join(f"{quantile(times, part) * 1000:.0f}" for part in (0.5, 0.99, 1))
    report("GET /api/session, ms, p50 / p99 / max", shown, "wanted: p99 below 100")
    report("responses to the callers", dict(responses))


def measure_burst(deployment: Deployment, seconds: float) -> None:
    """Request the session of one person while another reads many things at once."""
    del seconds  # a burst has no fixed duration
    mine, other = (
        deployment.connect("mira_t_42"),
        deployment.connect(str(deployment.sandbox.seed(1)[0]["id"])),
    )
    for latency in (0.1, 0.4, 0.7, 1.5):
        deployment.sandbox.settings(latency_ms={"api": int(latency * 1000), "token": 0})
        print(f"{READS} different reads of one person at once, Spotify takes {latency} s")
        sampling = deployment.sampler.submit(measure_session_times, deployment.port, other, 5)
        responses = asyncio.run(burst(deployment.port, mine, f"{latency}"))
        busy = sampling.result()
        report(
            "responses",
            dict(Counter(response.status for response in responses)),
            f"wanted: 404, {READS} times",
        )
        report(
            "seconds until the last one",
            f"{max(response.took for response in responses):.1f}",
            "wanted: below 15",
        )
        shown = " / ".join(f"{quantile(busy, part) * 1000:.0f}" for part in (0.5, 0.99))
        report("GET /api/session of another person, ms, p50 / p99", shown, "wanted: p99 below 100")


async def burst(port: int, cookie: str, name: str) -> list[Response]:
    """Read many things at once."""
    tabs = [Tab(port, cookie) for _ in range(READS)]
    try:
        return await asyncio.gather(
            *(tab.get(f"{V1}/tracks/{name}-{number}") for number, tab in enumerate(tabs))
        )
    finally:
        for tab in tabs:
            tab.close()


def measure_hits(deployment: Deployment, seconds: float) -> None:
    """Compare cached responses with requests for the session."""
    print("Cached responses and GET /api/session, 16 connections")
    cookie = deployment.connect("mira_t_42")
    done: Counter[str] = Counter()
    paths = {"shared": f"{V1}/me/player", "session": "/api/session"}
    for name in ["shared", "session"] * 3:

        async def ask(_: int, tab: Tab, name: str = name) -> None:
            response = await tab.get(paths[name])
            done[name if response.status == 200 else f"{name}, failed"] += 1

        asyncio.run(run_concurrently([Tab(deployment.port, cookie) for _ in range(16)], ask, seconds / 6))
    for name in paths:
        report(f"requests per second, {name}", f"{done[name] / (seconds / 2):.0f}")
        report("failed", done[f"{name}, failed"])
    report("ratio", f"{done['shared'] / done['session']:.2f}")


MEASURES: dict[str, Callable[[Deployment, float], None]] = {
    "tabs": measure_tabs,
    "sluggish": lambda deployment, seconds: measure_tabs(deployment, seconds, 0.7),
    "slow": measure_slow,
    "hang": measure_hang,
    "burst": measure_burst,
    "hits": measure_hits,
}


def main() -> None:
    """Run the measurements that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mariadb", action="store_true", help="on MariaDB instead of SQLite")
    parser.add_argument("--threads", type=int, default=32, help="threads of each worker")
    parser.add_argument("--seconds", type=float, default=20, help="duration of each measurement, at most 60")
    parser.add_argument("what", nargs="*", help=", ".join(MEASURES))
    arguments: Any = parser.parse_args()
    if unknown := set(arguments.what) - set(MEASURES):
        parser.error(f"unknown measurement: {', '.join(unknown)}")
    for name in arguments.what or MEASURES:
        with running_deployment(mariadb=arguments.mariadb, threads=arguments.threads) as deployment:
            MEASURES[name](deployment, min(arguments.seconds, 60))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
    sys.exit()
