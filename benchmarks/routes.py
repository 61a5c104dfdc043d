"""What each route costs, compared with a Flask application that returns a constant."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace

from benchmarks import client
from benchmarks.client import Round
from benchmarks.deployment import Deployment, Servers, running_backline, running_servers
from benchmarks.processes import Target, running_gunicorn
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from tests.helpers.servers import ROOT, Unavailable, free_port, process_environment

V1 = "/api/spotify/v1"
# Multiples of `bare`.
LIMITS = {
    "/livez": 1.15,
    "/api/session": 1.8,
    "/api/user": 1.8,
    "/api/spotify/token": 2.2,
    "/api/spotify/authorize": 2.2,
    f"{V1}/me/player": 2.2,
}
FLOORS = {
    "bare + Redis": "/redis",
    "bare + Redis + SQLAlchemy Core": "/redis-core",
    "bare + Redis + mysqlclient": "/redis-mysqlclient",
}
# It takes less CPU time than gunicorn's own.
OUR_WORKER = "deploy.worker.Worker"

CONDITIONS = "2 workers with 8 threads, wrk with 16 connections on the same machine"
# By default, the player is fetched once a second.
SHARED = {"GATEWAY_SHARE_SECONDS": "60"}


def run(options: Options) -> Section:
    """Measure all routes, interleaved, and those of an earlier version if there is one."""
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers())
        targets = stack.enter_context(running_bare(servers))
        targets += routes(stack.enter_context(running_backline(servers, SHARED)))
        if options.before is not None:
            own = stack.enter_context(running_servers(options.before))
            earlier = stack.enter_context(running_backline(own, SHARED, root=options.before))
            targets += [replace(target, name=f"before: {target.name}") for target in routes(earlier)]
        if options.only:
            names = [target.name for target in targets]
            if unknown := set(options.only) - set(names):
                raise Unavailable(f"There is no {', '.join(sorted(unknown))}, but: {', '.join(names)}.")
            targets = [target for target in targets if target.name in ("bare", *options.only)]
        rounds = interleave(targets, options)
    unit = client.median(rounds["bare"], "cpu_ms")
    figures = [
        Figure(name, client.median(found, "cpu_ms") / unit, "x", LIMITS.get(name), more=columns(found))
        for name, found in rounds.items()
    ]
    count = len(rounds["bare"])
    notes = [
        f"CPU time of gunicorn's processes for each request, as a multiple of `bare`; {CONDITIONS}.",
        f"Medians of {options.rounds} interleaved rounds. `bare` varies the most, so it has {count} rounds.",
        "GATEWAY_SHARE_SECONDS=60, so that all reads of the player are hits.",
    ]
    return Section("Routes", figures, notes, raw_rounds(rounds))


@contextmanager
def running_bare(servers: Servers) -> Iterator[list[Target]]:
    """Run the application without anything, and return what to measure."""
    env = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.bare"], env=process_environment(env), cwd=ROOT, check=True
    )
    expected = {"name": "ada"}
    with (
        running_gunicorn("benchmarks.bare:app", env, free_port()) as (url, tree),
        running_gunicorn("benchmarks.bare:app", env, free_port(), worker_class=OUR_WORKER) as (
            ours,
            our_tree,
        ),
    ):
        yield [
            *(
                Target(name, f"{url}{path}", tree, expected=expected)
                for name, path in {"bare": "/", **FLOORS}.items()
            ),
            Target("bare on Backline's worker", f"{ours}/", our_tree, expected=expected),
        ]


def routes(backline: Deployment) -> list[Target]:
    """Sign in, connect, and return the routes to measure."""
    cookie = backline.connect(username="ada")
    playing = {"is_playing": True}
    player = backline.target(f"{V1}/me/player", cookie, playing, {"X-Cache": "hit"})
    replace(player, expected_headers={}).check()  # the first read is a miss
    return [
        backline.target("/livez", "", {}),
        backline.target("/api/session", cookie, {"authenticated": True, "spotify.status": "connected"}),
        backline.target("/api/user", cookie, {"username": "ada"}),
        backline.target("/api/spotify/token", cookie, {"token_type": "Bearer"}),
        backline.target("/api/spotify/authorize", cookie, {"status": "connected"}),
        player,
        backline.target("/api/openapi.json", "", {"info.title": "Backline"}),
    ]


def interleave(targets: Sequence[Target], options: Options) -> dict[str, list[Round]]:
    """Measure all targets in turn, repeatedly, and the first one before every third of the others."""
    for target in targets:
        progress(f"warming up: {target.name}")
        client.warm_up(target)
    found: dict[str, list[Round]] = {target.name: [] for target in targets}
    unit, *others = targets
    turns = [turn for index, target in enumerate(others) for turn in ([] if index % 3 else [unit]) + [target]]
    for number in range(options.rounds):
        for target in turns:
            progress(f"round {number + 1} of {options.rounds}: {target.name}")
            found[target.name].append(client.measure(target, options.seconds))
            target.check()
    return found


def columns(rounds: Sequence[Round]) -> Mapping[str, float]:
    """Return the columns of the table."""
    return {
        "CPU ms": client.median(rounds, "cpu_ms"),
        "requests/s": client.median(rounds, "per_second"),
        "p50 ms": client.median(rounds, "p50"),
        "p99 ms": client.median(rounds, "p99"),
    }


def raw_rounds(rounds: Mapping[str, Sequence[Round]]) -> dict[str, object]:
    """Return all rounds for the JSON file."""
    return {name: [asdict(one) for one in found] for name, found in rounds.items()}
