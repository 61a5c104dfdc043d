"""How long requests take when the server is not saturated, and that none is lost when it is."""

import asyncio
import random
import time
from dataclasses import asdict

from benchmarks import client, routes
from benchmarks.client import Round
from benchmarks.deployment import Deployment, Servers, running_backline, running_servers
from benchmarks.load import Tab, quantile
from benchmarks.processes import Target
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section

CALLERS, PAUSE_SECONDS = 16, 0.1
MANY_CONNECTIONS, PACED_CONNECTIONS, PART_OF_PEAK = 512, 128, 0.7


def run_miss(options: Options) -> Section:
    """Compare calls through the gateway with direct calls of the sandbox."""
    seconds = 8 if options.quick else 30
    with running_servers() as servers, running_backline(servers) as backline:
        people = [str(person["id"]) for person in servers.sandbox.seed(CALLERS)]
        progress(f"connecting {CALLERS} people")
        cookies = [backline.connect(person) for person in people]
        bearers = [_token(backline, cookie) for cookie in cookies]
        progress("calling the sandbox directly and through the gateway, in turn")
        direct, through = asyncio.run(_alternate(backline, cookies, bearers, seconds))
    added = {part: (quantile(through, part) - quantile(direct, part)) * 1000 for part in (0.5, 0.99)}
    figures = [
        Figure("added to the p50", added[0.5], "ms", at_most=2),
        Figure("added to the p99", added[0.99], "ms", at_most=10),
        *(
            Figure(f"{name}, p{part * 100:.0f}", quantile(times, part) * 1000, "ms")
            for name, times in (("direct", direct), ("gateway", through))
            for part in (0.5, 0.99)
        ),
    ]
    notes = [
        f"{CALLERS} connections, each of another person, call the sandbox directly and through the gateway",
        f"in turn, about every {PAUSE_SECONDS} s. No response is shared. {len(through)} calls of each kind.",
    ]
    return Section("Latency of the gateway", figures, notes)


def _token(backline: Deployment, cookie: str) -> str:
    response = backline.get("/api/spotify/token", cookie)
    return str(response.json()["access_token"])


async def _alternate(
    backline: Deployment, cookies: list[str], bearers: list[str], seconds: float
) -> tuple[list[float], list[float]]:
    direct, through = list[float](), list[float]()
    end = time.monotonic() + seconds
    sandbox = int(backline.sandbox.url.rpartition(":")[2])

    async def call(number: int) -> None:
        ours = Tab(backline.port, cookies[number])
        theirs = Tab(sandbox, headers={"Authorization": f"Bearer {bearers[number]}"})
        turn = 0
        while time.monotonic() < end:
            for tab, prefix, times in ((theirs, "/v1", direct), (ours, routes.V1, through)):
                await asyncio.sleep(random.uniform(0.5, 1.5) * PAUSE_SECONDS)
                turn += 1
                response = await tab.get(f"{prefix}/search?q={number}-{turn}&type=track&limit=1")
                assert response.status == 200, response
                if tab is ours:
                    assert response.headers["x-cache"] == "miss", response.headers
                if turn > 4:  # connections are open, and tokens are read
                    times.append(response.took)
        ours.close()
        theirs.close()

    await asyncio.gather(*map(call, range(CALLERS)))
    return direct, through


def run_tail(options: Options) -> Section:
    """Request the session at 70% of the peak rate, and over 512 connections."""
    seconds = 4 if options.quick else 15
    with running_servers() as servers, running_backline(servers, routes.SHARED) as backline:
        target = next(target for target in routes.routes(backline) if target.name == "/api/session")
        client.warm_up(target)
        progress("measuring the peak rate")
        peak = client.measure(target, seconds).per_second
        paced = _at_part_of_peak(target, peak, seconds)
        progress(f"{MANY_CONNECTIONS} connections")
        many = client.measure(target, seconds, MANY_CONNECTIONS)
        bare = _bare_at_part_of_peak(servers, seconds)
    figures = [
        Figure("peak rate, 16 connections", peak, "/s"),
        Figure("rate with pauses", paced.per_second, "/s"),
        Figure("its p50", paced.p50, "ms"),
        Figure("its p99", paced.p99, "ms"),
        Figure("its p99 as a multiple of its p50", paced.p99 / paced.p50, "x", at_most=5),
        Figure("the same of bare Flask", bare.p99 / bare.p50, "x"),
        Figure(f"requests that failed over {MANY_CONNECTIONS} connections", many.failed, "", at_most=0),
        Figure("rate over them", many.per_second, "/s"),
        Figure("p99 over them", many.p99, "ms"),
    ]
    notes = [
        f"GET /api/session, 2 workers with 8 threads. {PACED_CONNECTIONS} connections pause between requests",
        "so that the rate is at most 70% of the peak.",
        f"{many.requests} requests over {MANY_CONNECTIONS} connections.",
    ]
    return Section(
        "Tail latency", figures, notes, {"paced": asdict(paced), "many": asdict(many), "bare": asdict(bare)}
    )


def _bare_at_part_of_peak(servers: Servers, seconds: int) -> Round:
    with routes.running_bare(servers) as targets:
        target = next(target for target in targets if target.name == "bare")
        client.warm_up(target)
        progress("the same of bare Flask")
        return _at_part_of_peak(target, client.measure(target, seconds).per_second, seconds)


def _at_part_of_peak(target: Target, peak: float, seconds: float) -> Round:
    """Send requests at 70% of the peak rate, over so many connections that they hardly wait."""
    rate = PART_OF_PEAK * peak
    progress(f"{rate:.0f} requests per second")
    return client.measure(target, seconds, PACED_CONNECTIONS, pause_ms=1000 * PACED_CONNECTIONS / rate)
