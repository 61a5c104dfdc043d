"""Random faults from a seed, while people use the product.

The seed decides every step, but the effects also depend on timing. Each step is recorded, so that a run can
be read and repeated.
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

from tests.chaos.browser import Browser
from tests.chaos.checker import Report, check
from tests.chaos.deployment import RecordedDeployment
from tests.helpers.processes import ApiServer
from tests.helpers.servers import LONG

PEOPLE = 12
MAX_REQUESTS = 24  # at the same time; the servers need some spare threads to make progress
MAX_FAULTS = 2  # at once
# Spotify's faults and their weights. Rate limits are rare, because each pauses everything for half a minute.
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
# Faults that affect one person's own application only, and their kinds in the sandbox.
APPLICATION_FAULTS = {
    "own application refused": "invalid_client",
    "own application rate limited": "rate_limited",
    "own application unavailable": "envoy_503",
}
SPOTIFY_FAULTS |= dict.fromkeys(APPLICATION_FAULTS, 0.5)
# Changed members of responses that have taken effect. None of these may lose a refresh token.
CHANGED_MEMBERS: tuple[dict[str, object], ...] = (
    {"access_token": None},
    {"access_token": ["x"], "expires_in": None},
    {"expires_in": "3600"},
    {"expires_in": -1, "scope": ["streaming"]},
    {"token_type": None},
)
ONE_TIME_FAULTS = ("false_invalid_grant", "invalid_client")
# Faults that affect everyone are kept short, so that other things can happen.
GLOBAL_FAULTS = ("mariadb killed", "mariadb paused", "redis killed")

Undo = Callable[[], None]


@dataclass
class _Running:
    """An active fault, until this step."""

    name: str
    until: int
    undo: ExitStack


class RandomRun:
    """A run of random steps in a fresh deployment."""

    def __init__(
        self, deployment: RecordedDeployment, seed: str, *, rotate: bool, grace_seconds: int | None = None
    ) -> None:
        self.deployment = deployment
        self.seed = seed
        self.rotate = rotate
        self.steps: list[str] = []
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._running: list[_Running] = []
        self._requests: list[Future[requests.Response]] = []
        self._errors: list[str] = []
        self._revoked: list[str] = []
        if grace_seconds is None:
            grace_seconds = self._random.choice((0, 120, 120))
        deployment.reset(rotate=rotate, grace_seconds=grace_seconds)
        people = [person["id"] for person in deployment.sandbox.people()[:2]]
        people += [person["id"] for person in deployment.sandbox.seed(PEOPLE - len(people))]
        self.people: list[str] = people
        self._client_ids: list[str] = []  # of people's own applications
        self._browsers = [self._connected(person, number) for number, person in enumerate(people)]
        self._ids = {person: deployment.spotify_user_id_of(person) for person in people}
        deployment.resume_schedulers()

    def _connected(self, person: str, number: int) -> Browser:
        """Connect a person, every third one with their own application, half of which are public."""
        if number % 3:
            return self.deployment.connected(person)
        public = number % 2 == 1
        browser, application = self.deployment.connected_with_own_application(person, public=public)
        self._client_ids.append(application["client_id"])
        return browser

    def run(
        self, *, seconds: float, stopping: Callable[[], bool] = lambda: False, progress: Undo = lambda: None
    ) -> None:
        """Take steps until the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stopping():
            self.step()
            progress()

    def step(self) -> None:
        """Take one random step, and undo the faults that have lasted long enough."""
        number = len(self.steps)
        for fault in [fault for fault in self._running if fault.until <= number]:
            self._end(fault)
        actions, weights = zip(*self._actions(), strict=True)
        [action] = self._random.choices(actions, weights)
        try:
            outcome = action()
        except (sa.exc.OperationalError, redis.RedisError, requests.RequestException) as error:
            # Our own connections are affected by the faults, too.
            outcome = f"{action.__name__} could not be done: {type(error).__name__}"
        self.steps.append(f"{number}: {outcome}")
        time.sleep(self._random.uniform(0, 0.03))  # let it overlap with what is running

    def finish(self) -> Report:
        """Undo all faults, wait until everything has recovered, and check."""
        for fault in list(self._running):
            self._end(fault)
        self.deployment.restore()
        wait(self._requests, timeout=LONG)
        self._collect()
        self.deployment.settle()
        report = check(self.deployment.history())
        report.violations += self._errors
        return report

    # What people do.

    def _actions(self) -> list[tuple[Callable[[], str], float]]:
        actions: list[tuple[Callable[[], str], float]] = [
            (self._request_tokens, 40),
            (self._consent_again, 8 if self._revoked else 2),
            (self._disconnect, 1),
            (self._change_application, 0.5),
        ]
        if len(self._running) < MAX_FAULTS:
            actions.append((self._break_something, 6))
        if not self.deployment.database.is_unavailable:  # these need it
            actions += [(self._expire, 25), (self._advance_time, 12), (self._expire_everything, 1)]
            actions.append((self._break_spotify, 4))
        return actions

    def _request_tokens(self) -> str:
        count = self._random.choice((1, 1, 2, 5))
        browser = self._random.choice(self._browsers)
        servers = [self._random.choice(self.deployment.servers) for _ in range(count)]
        for server in servers:
            self._submit(_request_token, browser, server)
        return f"{browser.person} requests tokens at {', '.join(str(server) for server in servers)}"

    def _expire(self) -> str:
        spotify_user_ids = self._random.sample(sorted(self._ids.values()), self._random.choice((1, 2, 4)))
        left = self._random.choice((-5.0, -5.0, 5.0, 300.0))
        self.deployment.expire(*spotify_user_ids, left=left)
        return f"tokens of connections {spotify_user_ids} have {left:.0f} s left"

    def _advance_time(self) -> str:
        seconds = self._random.choice((5, 20, 31, 61))
        self.deployment.advance_time(seconds)
        return f"{seconds} s pass"

    def _expire_everything(self) -> str:
        self.deployment.advance_time(3590)
        return "an hour passes"

    def _consent_again(self) -> str:
        person = self._random.choice(self._revoked or self.people)
        server = self._random.choice(self.deployment.servers)
        if person in self._revoked:
            self._revoked.remove(person)

        def consent_again() -> requests.Response:
            return self.deployment.browser(person).connect(server)

        self._submit(consent_again)
        return f"{person} consents again at {server}"

    def _disconnect(self) -> str:
        browser, server = self._random.choice(self._browsers), self._random.choice(self.deployment.servers)

        def disconnect() -> requests.Response:
            browser.disconnect(server)
            return browser.connect(server)

        self._submit(disconnect)
        return f"{browser.person} disconnects and connects at {server}"

    def _change_application(self) -> str:
        """Register another application, which ends the connection, and connect with that one."""
        browser, server = self._random.choice(self._browsers), self._random.choice(self.deployment.servers)
        public = self._random.random() < 0.5
        [application] = self.deployment.sandbox.create_applications(1, quota="extended")
        self._client_ids.append(application["client_id"])

        def change() -> requests.Response:
            registered = browser.bring(application, server, public=public)
            return browser.connect(server) if registered.ok else registered

        self._submit(change)
        return f"{browser.person} connects with another application at {server}"

    def _submit(self, function: Callable[..., requests.Response], *arguments: Any) -> None:
        self._collect()
        if len(self._requests) < MAX_REQUESTS:
            self._requests.append(self.deployment.submit(function, *arguments))

    def _collect(self) -> None:
        """Count the responses. A 500 is a violation."""
        done = [future for future in self._requests if future.done()]
        self._requests = [future for future in self._requests if not future.done()]
        for future in done:
            error = future.exception()
            if error is None:
                response = future.result()
                self.statuses[str(response.status_code)] += 1
                if response.status_code == 500:
                    self._errors.append(f"HTTP 500: {response.request.method} {response.request.path_url}")
            elif isinstance(error, requests.RequestException | AssertionError):
                self.statuses["none"] += 1
            else:
                raise error
        self._ids |= self._known_ids()

    def _known_ids(self) -> dict[str, int]:
        """Return the current ids, which change after a disconnect."""
        if self.deployment.database.is_unavailable:
            return {}
        try:
            with self.deployment.engine.connect() as connection:
                rows = connection.execute(sa.text("SELECT spotify_id, id FROM spotify_users")).all()
        except sa.exc.OperationalError:
            return {}
        return {row.spotify_id: row.id for row in rows if row.spotify_id in self._ids}

    # Faults.

    def _break_spotify(self) -> str:
        """Let the sandbox respond to a few calls wrongly, slowly, or not at all."""
        sandbox, times = self.deployment.sandbox, self._random.choice((1, 1, 2, 5))
        [kind] = self._random.choices(list(SPOTIFY_FAULTS), list(SPOTIFY_FAULTS.values()))
        self.faults[f"spotify: {kind}"] += 1
        if kind == "revoked":
            person = self._random.choice(self.people)
            self.deployment.revoke(person)
            self._revoked.append(person)
            return f"{person} revokes"
        if kind in APPLICATION_FAULTS:
            which = {"client_id": self._random.choice(self._client_ids), "kind": APPLICATION_FAULTS[kind]}
            sandbox.fault(on="refresh", times=times, retry_after=self._random.choice((1, 5, 20)), **which)
        elif kind == "lost":
            sandbox.fault(on="refresh", kind="close", times=times, after_effect=True)
        elif kind == "changed_members":
            members = self._random.choice(CHANGED_MEMBERS)
            sandbox.fault(on="refresh", kind=kind, times=times, members=members, after_effect=True)
        elif kind == "slow":
            sandbox.fault(on="refresh", kind="slow", times=times, seconds=self._random.choice((0.2, 1, 3)))
        elif kind == "rate_limited":
            sandbox.fault(on="refresh", kind=kind, times=1, retry_after=self._random.choice((1, 5, 20)))
        else:
            sandbox.fault(on="refresh", kind=kind, times=1 if kind in ONE_TIME_FAULTS else times)
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
        # Recorded from before the first effect until after the last.
        undo.enter_context(self.deployment.recorded_fault(name))
        length = self._random.choice((2, 5) if name in GLOBAL_FAULTS else (2, 5, 15))
        self._running.append(_Running(name, len(self.steps) + length, undo))
        return f"{name} for {length} steps: {faults[name](undo)}"

    def _end(self, fault: _Running) -> None:
        self._running.remove(fault)
        fault.undo.close()

    def _pause_server(self, undo: ExitStack) -> str:
        server = self._random.choice(self.deployment.servers)
        server.pause()
        undo.callback(server.resume)
        return f"{server}"

    def _pause_scheduler(self, undo: ExitStack) -> str:
        scheduler = self._random.choice(self.deployment.schedulers)
        scheduler.pause()
        undo.callback(scheduler.resume)
        return f"{scheduler}"

    def _kill_server(self, _: ExitStack) -> str:
        server = self._random.choice(self.deployment.servers)
        server.kill_worker()
        return f"{server}"

    def _kill_scheduler(self, undo: ExitStack) -> str:
        scheduler = self._random.choice(self.deployment.schedulers)
        scheduler.kill()
        undo.callback(scheduler.launch)
        return f"{scheduler}"

    def _flush_redis(self, _: ExitStack) -> str:
        self.deployment.redis.client.flushall()
        return "everyone is signed out"

    def _kill_redis(self, undo: ExitStack) -> str:
        self.deployment.redis.kill()
        undo.callback(self.deployment.redis.start)
        return "killed"

    def _kill_mariadb(self, undo: ExitStack) -> str:
        self.deployment.database.kill()
        undo.callback(self.deployment.database.start)
        return "killed"

    def _pause_mariadb(self, undo: ExitStack) -> str:
        self.deployment.database.pause()
        undo.callback(self.deployment.database.resume)
        return "stopped"

    def _refuse(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.refuse())

    def _stall(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.blackhole())

    def _cut(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.cut())

    def _slow_down(self, undo: ExitStack) -> str:
        return self._at_a_proxy(undo, lambda proxy: proxy.latency(0.1))

    def _at_a_proxy(self, undo: ExitStack, inject: Callable[[Any], None]) -> str:
        product, what = (
            self._random.choice(self.deployment.processes),
            self._random.choice(("database", "redis", "spotify")),
        )
        proxy = getattr(product, what)
        inject(proxy)
        undo.callback(proxy.restore)
        return f"between {product} and {what}"

    def _lose_reply(self, undo: ExitStack) -> str:
        product = self._random.choice(self.deployment.processes)
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
        """Hold a server before a COMMIT, and kill it there when the fault ends."""
        server = self._random.choice(self.deployment.servers)
        server.database.hold("up", when=b"COMMIT", since=b"UPDATE access_tokens")

        def kill() -> None:
            if server.database.held:
                server.kill_worker()
            server.database.restore()

        undo.callback(kill)
        return f"{server}"


def _request_token(browser: Browser, server: ApiServer) -> requests.Response:
    """Request the token, after signing in again if Redis lost the session."""
    response = browser.token(server)
    if response.status_code == 409 and "not-connected" in response.text:
        browser.login(server)
        response = browser.token(server)
    return response
