"""Chaos at random, from a seed: people use the product while everything around it breaks.

The seed decides every step; what comes of it depends on the moment as well, as in life. Each step
is written down, so that a run can be read, and tried again.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import redis
import requests
import sqlalchemy as sa

from tests.chaos.checker import Report, check
from tests.chaos.processes import ApiServer
from tests.chaos.world import Browser, World

PEOPLE = 12
MOST_REQUESTS = 24  # under way at once: fewer than the servers have threads for, or nothing would happen
MOST_FAULTS = 2  # at once
# What Spotify does wrong, and how often: a request to wait stops everybody for half a minute, and
# nothing at all would happen if that were half of the time.
SPOTIFY_FAULTS = {
    "google_502": 3,
    "close": 3,
    "truncated_json": 2,
    "lost": 5,
    "changed_members": 3,
    "slow": 3,
    "false_invalid_grant": 1,
    "revoked": 1,
    "rate_limited": 0.5,
    "invalid_client": 0.3,
}
# What "changed_members" makes of an answer that has taken effect. None of it may cost a refresh token.
CHANGED_MEMBERS: tuple[dict[str, object], ...] = (
    {"access_token": None},
    {"access_token": ["x"], "expires_in": None},
    {"expires_in": "3600"},
    {"expires_in": -1, "scope": ["streaming"]},
    {"token_type": None},
)
ONCE = ("false_invalid_grant", "invalid_client")
# What everybody suffers from is kept short, or little else would happen.
FOR_ALL = ("mariadb killed", "mariadb paused", "redis killed")

Undo = Callable[[], None]


@dataclass
class _Running:
    """A fault in force, until so many steps are done."""

    name: str
    until: int
    undo: ExitStack


class Chaos:
    """One run in a fresh world."""

    def __init__(self, world: World, seed: str, *, rotate: bool, grace_seconds: int | None = None) -> None:
        self.world = world
        self.seed = seed
        self.rotate = rotate
        self.steps: list[str] = []
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._running: list[_Running] = []
        self._asked: list[Future[requests.Response]] = []
        self._errors: list[str] = []
        self._revoked: list[str] = []
        if grace_seconds is None:
            grace_seconds = self._random.choice((0, 120, 120))
        world.reset(rotate=rotate, grace_seconds=grace_seconds if rotate else 0)
        people = [person["id"] for person in world.sandbox.people()[:2]]
        people += [person["id"] for person in world.sandbox.seed(PEOPLE - len(people))]
        self.people: list[str] = people
        self._browsers = [world.connected(person) for person in people]
        self._links = {person: world.link_of(person) for person in people}
        world.resume_schedulers()

    def run(
        self, *, seconds: float, stopping: Callable[[], bool] = lambda: False, progress: Undo = lambda: None
    ) -> None:
        """Do one step after the other until the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stopping():
            self.step()
            progress()

    def step(self) -> None:
        """Do one thing, and undo the faults that have lasted long enough."""
        number = len(self.steps)
        for fault in [fault for fault in self._running if fault.until <= number]:
            self._end(fault)
        actions, weights = zip(*self._actions(), strict=True)
        [action] = self._random.choices(actions, weights)
        try:
            said = action()
        except (sa.exc.OperationalError, redis.RedisError, requests.RequestException) as error:
            # The harness meets what it has broken.
            said = f"{action.__name__} could not be done: {type(error).__name__}"
        self.steps.append(f"{number}: {said}")
        time.sleep(self._random.uniform(0, 0.03))  # a little time for it to meet what is going on

    def finish(self) -> Report:
        """Undo everything, let it heal, and check."""
        for fault in list(self._running):
            self._end(fault)
        self.world.heal()
        wait(self._asked, timeout=60)
        self._collect()
        self.world.settle()
        report = check(self.world.history())
        report.violations += self._errors
        return report

    # What people do.

    def _actions(self) -> list[tuple[Callable[[], str], float]]:
        actions: list[tuple[Callable[[], str], float]] = [
            (self._ask, 40),
            (self._link_anew, 8 if self._revoked else 2),
            (self._disconnect, 1),
        ]
        if len(self._running) < MOST_FAULTS:
            actions.append((self._break_something, 6))
        if not self.world.database.is_away:  # the harness needs it for these
            actions += [(self._run_out, 25), (self._pass_time, 12), (self._everything_runs_out, 1)]
            actions.append((self._break_spotify, 4))
        return actions

    def _ask(self) -> str:
        count = self._random.choice((1, 1, 2, 5))
        browser, servers = self._random.choice(self._browsers), self.world.servers
        asked = [self._random.choice(servers) for _ in range(count)]
        for server in asked:
            self._later(_token, browser, server)
        return f"{browser.person} asks {', '.join(str(server) for server in asked)}"

    def _run_out(self) -> str:
        links = self._random.sample(sorted(self._links.values()), self._random.choice((1, 2, 4)))
        left = self._random.choice((-5.0, -5.0, 5.0, 300.0))
        self.world.run_out(*links, left=left)
        return f"tokens of links {links} have {left:.0f} s left"

    def _pass_time(self) -> str:
        seconds = self._random.choice((5, 20, 31, 61))
        self.world.pass_time(seconds)
        return f"{seconds} s pass"

    def _everything_runs_out(self) -> str:
        self.world.pass_time(3590)
        return "an hour passes"

    def _link_anew(self) -> str:
        person = self._random.choice(self._revoked or self.people)
        server = self._random.choice(self.world.servers)
        if person in self._revoked:
            self._revoked.remove(person)

        def link_anew() -> requests.Response:
            return self.world.browser(person).connect(server)

        self._later(link_anew)
        return f"{person} consents anew at {server}"

    def _disconnect(self) -> str:
        browser, server = self._random.choice(self._browsers), self._random.choice(self.world.servers)

        def disconnect() -> requests.Response:
            browser.disconnect(server)
            return browser.connect(server)

        self._later(disconnect)
        return f"{browser.person} disconnects and connects at {server}"

    def _later(self, function: Callable[..., requests.Response], *arguments: Any) -> None:
        self._collect()
        if len(self._asked) < MOST_REQUESTS:
            self._asked.append(self.world.later(function, *arguments))

    def _collect(self) -> None:
        """Count the answers that have come. An error of the server's own is one too many."""
        done = [future for future in self._asked if future.done()]
        self._asked = [future for future in self._asked if not future.done()]
        for future in done:
            error = future.exception()
            if error is None:
                response = future.result()
                self.answers[str(response.status_code)] += 1
                if response.status_code == 500:
                    self._errors.append(f"HTTP 500: {response.request.method} {response.request.path_url}")
            elif isinstance(error, requests.RequestException | AssertionError):
                self.answers["none"] += 1
            else:
                raise error
        self._links |= self._known_links()

    def _known_links(self) -> dict[str, int]:
        """Links are new after a disconnect."""
        if self.world.database.is_away:
            return {}
        try:
            with self.world.engine.connect() as connection:
                rows = connection.execute(sa.text("SELECT spotify_id, id FROM spotify_users")).all()
        except sa.exc.OperationalError:
            return {}
        return {row.spotify_id: row.id for row in rows if row.spotify_id in self._links}

    # What breaks.

    def _break_spotify(self) -> str:
        """The sandbox answers a few calls wrongly, slowly, or not at all."""
        sandbox, times = self.world.sandbox, self._random.choice((1, 1, 2, 5))
        [kind] = self._random.choices(list(SPOTIFY_FAULTS), list(SPOTIFY_FAULTS.values()))
        self.faults[f"spotify: {kind}"] += 1
        if kind == "revoked":
            person = self._random.choice(self.people)
            self.world.revoke(person)
            self._revoked.append(person)
            return f"{person} revokes"
        if kind == "lost":
            sandbox.fault(on="refresh", kind="close", times=times, after_effect=True)
        elif kind == "changed_members":
            members = self._random.choice(CHANGED_MEMBERS)
            sandbox.fault(on="refresh", kind=kind, times=times, members=members, after_effect=True)
        elif kind == "slow":
            sandbox.fault(on="refresh", kind="slow", times=times, seconds=self._random.choice((0.2, 1, 3)))
        elif kind == "rate_limited":
            sandbox.fault(on="refresh", kind=kind, times=1, retry_after=self._random.choice((1, 5, 20)))
        else:
            sandbox.fault(on="refresh", kind=kind, times=1 if kind in ONCE else times)
        return f"spotify: {kind}, {times} times"

    def _break_something(self) -> str:
        faults = {
            "server paused": self._pause_server,
            "scheduler paused": self._pause_scheduler,
            "server killed": self._kill_server,
            "scheduler killed": self._kill_scheduler,
            "redis flushed": self._flush_redis,
            "redis killed": self._kill_redis,
            "mariadb killed": self._kill_mariadb,
            "mariadb paused": self._pause_mariadb,
            "connection refused": self._refuse,
            "connection stalled": self._stall,
            "connections cut": self._cut,
            "connection slow": self._slow_down,
            "reply lost": self._lose_reply,
            "killed at the commit": self._kill_at_commit,
        }
        name = self._random.choice(sorted(faults))
        if any(fault.name == name for fault in self._running):
            return f"{name} already"
        undo = ExitStack()
        self.faults[name] += 1
        # Noted as broken from before the first effect until after the last.
        undo.enter_context(self.world.broken(name))
        length = self._random.choice((2, 5) if name in FOR_ALL else (2, 5, 15))
        self._running.append(_Running(name, len(self.steps) + length, undo))
        return f"{name} for {length} steps: {faults[name](undo)}"

    def _end(self, fault: _Running) -> None:
        self._running.remove(fault)
        fault.undo.close()

    def _pause_server(self, undo: ExitStack) -> str:
        server = self._random.choice(self.world.servers)
        server.pause()
        undo.callback(server.resume)
        return f"{server}"

    def _pause_scheduler(self, undo: ExitStack) -> str:
        scheduler = self._random.choice(self.world.schedulers)
        scheduler.pause()
        undo.callback(scheduler.resume)
        return f"{scheduler}"

    def _kill_server(self, _: ExitStack) -> str:
        server = self._random.choice(self.world.servers)
        server.kill_worker()
        return f"{server}"

    def _kill_scheduler(self, undo: ExitStack) -> str:
        scheduler = self._random.choice(self.world.schedulers)
        scheduler.kill()
        undo.callback(scheduler.launch)
        return f"{scheduler}"

    def _flush_redis(self, _: ExitStack) -> str:
        self.world.redis.client.flushall()
        return "everybody is signed out"

    def _kill_redis(self, undo: ExitStack) -> str:
        self.world.redis.kill()
        undo.callback(self.world.redis.start)
        return "gone"

    def _kill_mariadb(self, undo: ExitStack) -> str:
        self.world.database.kill()
        undo.callback(self.world.database.start)
        return "gone"

    def _pause_mariadb(self, undo: ExitStack) -> str:
        self.world.database.pause()
        undo.callback(self.world.database.resume)
        return "stopped"

    def _refuse(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.refuse())

    def _stall(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.blackhole())

    def _cut(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.cut())

    def _slow_down(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.latency(0.1))

    def _at_a_proxy(self, undo: ExitStack, harm: Callable[[Any], None]) -> str:
        product, what = (
            self._random.choice(self.world.products),
            self._random.choice(("database", "redis", "spotify")),
        )
        proxy = getattr(product, what)
        harm(proxy)
        undo.callback(proxy.restore)
        return f"between {product} and {what}"

    def _lose_reply(self, undo: ExitStack) -> str:
        product = self._random.choice(self.world.products)
        kind = self._random.choice(("claim or commit", "lock or unlock", "refresh"))
        if kind == "refresh":
            product.spotify.drop_reply(after=b"/api/token")
        elif kind == "lock or unlock":
            product.redis.drop_reply(after=b"lock:")
        else:
            product.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
        for proxy in product.proxies:
            undo.callback(proxy.restore)
        return f"{kind} at {product}"

    def _kill_at_commit(self, undo: ExitStack) -> str:
        """Hold a server at a COMMIT. What it has not sent by the end of the fault, it never will."""
        server = self._random.choice(self.world.servers)
        server.database.hold("up", when=b"COMMIT", since=b"UPDATE access_tokens")

        def kill() -> None:
            if server.database.held:
                server.kill_worker()
            server.database.restore()

        undo.callback(kill)
        return f"{server}"


def _token(browser: Browser, server: ApiServer) -> requests.Response:
    """Ask for the token; sign in first where the session was lost with Redis."""
    response = browser.token(server)
    if response.status_code == 409 and "not-connected" in response.text:
        browser.login(server)
        response = browser.token(server)
    return response
