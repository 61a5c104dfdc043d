"""Prints how Backline behind nginx bears slow clients, stalled dependencies, bursts, and killed workers.

    .venv/bin/python -m tests.system.deploy.measure [slow | stalled | burst | killed]…

The servers are real, run on loopback, and are started from the files in deploy/. Takes four minutes.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.helpers.deployment import Deployment
from tests.helpers.load import HOST, Call, Ended, Load, slow_connections, summary
from tests.helpers.processes import ApiServer
from tests.helpers.raw_http import request
from tests.helpers.sandbox_client import SandboxClient, running_sandbox
from tests.helpers.servers import Nginx, eventually, running_nginx
from tests.system.deploy.test_nginx import many_files
from tests.system.test_outages_http import authorize, sign_up

SETTINGS = {
    "TRUSTED_PROXIES": "1",
    "TRUSTED_HOSTS": f"{HOST},127.0.0.1",
    "SESSION_COOKIE_SECURE": "true",
    "LOG_LEVEL": "INFO",
}


class Target:
    """A server behind nginx, with somebody's cookie."""

    def __init__(self, port: int, certificate: Path, cookie: str, kill_worker: Callable[[], None]) -> None:
        self.port, self.certificate, self.cookie = port, certificate, cookie
        self.kill_worker = kill_worker

    def call(self, target: str, status: int = 200, method: str = "GET") -> Call:
        return Call(method, target, status, {"Cookie": self.cookie})

    def load(self, calls: list[Call], **options: int) -> Load:
        return Load(self.port, self.certificate, calls, **options)


class Measured(Target):
    """A deployment behind nginx, with the cookie of somebody who has connected Spotify."""

    def __init__(self, deployment: Deployment, nginx: Nginx) -> None:
        [self.api] = deployment.servers
        self.deployment, self.sandbox = deployment, deployment.sandbox
        cookie = connect(self.api, self.sandbox)
        super().__init__(nginx.port, nginx.certificate, cookie, self.api.kill_worker)


def connect(api: ApiServer, sandbox: SandboxClient) -> str:
    cookies = sign_up(api)
    callback = sandbox.consent(authorize(api, cookies).json()["authorize_url"], person="mira_t_42")
    query = dict(pair.split("=", 1) for pair in callback.partition("?")[2].split("&"))
    assert authorize(api, cookies, params=query).json()["status"] == "connected"
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


@contextmanager
def measured() -> Iterator[Measured]:
    with running_sandbox() as sandbox, Deployment.running(sandbox, **SETTINGS) as deployment:
        deployment.start(servers=1, schedulers=0)
        port = int(deployment.servers[0].url.rpartition(":")[2])
        with running_nginx(port) as nginx:
            yield Measured(deployment, nginx)


def report(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def slow(on: Target) -> None:
    """Compare latencies without and with 1,000 connections whose headers or bodies do not end."""
    calls = [on.call("/api/session"), on.call("/api/user")]
    header = request("GET", "/api/session").replace(b"Connection: close", b"X: slow")[:-2]
    body = request("POST", "/api/login", "Content-Length: 9", "Content-Type: application/json") + b"x"

    def measure(name: str) -> None:
        with on.load(calls, clients=4) as load:
            time.sleep(20)
        report(part="slow", connections=name, **summary(load.ended))

    measure("none")
    stop = time.monotonic() + 60
    with many_files(3_000), slow_connections(on.port, on.certificate, [header, body] * 500):
        # nginx closes them after ten seconds, so they are opened again and again.
        with on.load(calls, clients=4) as load:
            while time.monotonic() < stop:
                with slow_connections(on.port, on.certificate, [header, body] * 500):
                    time.sleep(5)
        report(part="slow", connections="1000 to 2000", **summary(load.ended))


def stalled(on: Measured) -> None:
    """Stall each dependency for half a minute, and measure the slowest response and the recovery."""
    web_api, state = on.call("/api/spotify/v1/me/player"), on.call("/api/user")
    for name, limit, stall, calls in (
        ("Redis", 1.0, on.api.redis.blackhole, [on.call("/api/session"), state]),
        ("MySQL", 6.0, on.api.database.blackhole, [state, on.call("/api/spotify/token")]),
        ("Web API", 15.0, lambda: park(on.sandbox, "api"), [web_api, state]),
        ("accounts service", 15.0, lambda: park_refreshes(on), [web_api, state]),
    ):
        stall()
        with on.load(calls, clients=16) as load:
            time.sleep(15)
            transactions = open_transactions(on.deployment)
            time.sleep(15)
        heal(on)
        healed_at = time.monotonic()
        with on.load([web_api, state], clients=1) as after:
            eventually(lambda: recovered(after.ended), timeout=60)
        slowest = max(load.ended, key=lambda each: each.seconds)
        report(
            part="stalled",
            dependency=name,
            limit_s=limit,
            slowest_s=round(slowest.seconds, 2),
            responses=dict(Counter(f"{each.call.target} {each.status}" for each in load.ended)),
            open_transactions=transactions,
            recovery_s=round(recovered(after.ended) - healed_at, 2),
        )


def park(sandbox: SandboxClient, on: str) -> None:
    sandbox.fault(on=on, kind="park", times=None)


def park_refreshes(on: Measured) -> None:
    on.sandbox.expire_access_tokens()
    on.deployment.sql("UPDATE access_tokens SET expires_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE")
    park(on.sandbox, "refresh")


def heal(on: Measured) -> None:
    on.sandbox.clear_faults()
    on.api.restore()


def open_transactions(deployment: Deployment) -> int:
    [(count,)] = deployment.sql("SELECT COUNT(*) FROM information_schema.innodb_trx")
    return int(count)


def recovered(ended: list[Ended]) -> float:
    """Return when the first two calls in a row had ended that did not fail; 0 if there are none."""
    for one, two in pairwise(ended):
        if not one.has_failed and not two.has_failed:
            return two.ended
    return 0.0


def burst(on: Measured) -> None:
    """Send more than one address may, and compare the time of a 429 with that of other responses."""
    body = json.dumps({"login": "ada", "password": "a wrong password"}).encode()
    sign_in = Call("POST", "/api/login", 401, {"Content-Type": "application/json"}, body)
    for limit, call in (("sign-ins", sign_in), ("nginx", on.call("/api/session"))):
        with on.load([call], clients=1, addresses=1) as load:
            load.wait_for(500)
        for status in sorted({each.status for each in load.ended}):
            ended = [each for each in load.ended if each.status == status]
            report(part="burst", limit=limit, status=status, **summary(ended))


def killed(on: Target) -> None:
    """Kill the only worker five times, and list how requests failed that were in progress, and others."""
    calls = [on.call("/api/user"), Call("POST", "/api/logout", 204)]
    intervals = []
    with on.load(calls) as load:
        for _ in range(5):
            load.wait_for(500)
            began = time.monotonic()
            on.kill_worker()
            intervals.append((began, time.monotonic()))
            load.wait_for(500)
    own = [each for each in load.failed if any(each.ended >= a and each.began <= b for a, b in intervals)]
    report(
        part="killed",
        times=len(intervals),
        requests=len(load.ended),
        failed_in_progress=dict(Counter(f"{each.call.method} {each.status}" for each in own)),
        failed_otherwise=len(load.failed) - len(own),
    )


PARTS = {"slow": slow, "stalled": stalled, "burst": burst, "killed": killed}


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    with measured() as on:
        for name in names:
            PARTS[name](on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
