"""One run: three hosts, clients, one fault after the other, and what must hold at the end."""

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.infra.encryption import TokenCipher
from tests.chaos.change_log import ChangeLog
from tests.chaos.checker import check
from tests.chaos.history import Fault, ReturnedToken
from tests.cluster import faults, states
from tests.cluster.balancer import Balancer, start_sandbox
from tests.cluster.clients import Client, Clients, Person, sent_twice
from tests.cluster.grants import DueGrants, most_refreshes
from tests.cluster.hosts import (
    PASSWORDS,
    REFRESH_RATE,
    START_SECONDS,
    Host,
    Setup,
    create_database,
    create_redis_cluster,
    install_database,
    settings,
    wait_until_whole,
)
from tests.cluster.namespaces import make_network
from tests.cluster.plan import GAP_SECONDS, Outcome, Plan, Result
from tests.helpers.servers import eventually, migrate

CLIENTS = 6
SETTLE_SECONDS = 2.0
FRESH_SECONDS = 300.0
# Refreshes are counted in each period of this length.
RATE_SECONDS = 10


class Cluster:
    """Three hosts with everything that runs on them, and what is in front of them."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        self.random = random.Random(plan.seed)
        make_network()
        changes = PATIENT if plan.patient else {}
        self.setup = Setup({name: secrets.token_hex(16) for name in PASSWORDS}, plan.redis, changes)
        self.hosts = [Host(number, self.setup) for number in (1, 2, 3)]
        self._start()
        self.sandbox = start_sandbox()
        # If a response with a new refresh token is lost, the old one works for another while.
        self.sandbox.settings(rotate=True, rotation_grace_s=600)
        if not plan.grants:  # otherwise, these would soon be due again
            self.sandbox.settings(expires_in=plan.lifetime)
        self.balancer = Balancer()
        self._cipher = TokenCipher([bytes.fromhex(settings()["TOKEN_ENCRYPTION_KEYS"])])
        self.log = ChangeLog(self.hosts[0].engine, self._cipher)
        metadata = sa.MetaData()
        metadata.reflect(self.log.engine)
        self.tables = list(metadata.tables)
        self.log.start(metadata)
        self.returned: list[ReturnedToken] = []
        self.faults: list[Fault] = []
        if plan.patient:  # other tests may keep a server from responding at any time
            self.faults.append(Fault("busy machine", datetime.now(UTC)))

    def _start(self) -> None:
        first = self.hosts[0]
        install_database(first)
        first.boot()
        create_database(first)
        self._say("the first database runs")
        migrate(first.environment(for_migrations=True))
        for host in self.hosts[1:]:  # one after the other, as docs/cluster.md says
            host.boot()
            eventually(partial(states.is_synced, host.engine), START_SECONDS)
        if self.setup.redis == "cluster":
            create_redis_cluster(self.hosts, self.setup.passwords["SERVERS_PASSWORD"])
        try:
            wait_until_whole(self.hosts)
        except AssertionError:
            self._say(self.logs())
            raise
        self._say("three hosts run")

    def make_clients(self) -> Clients:
        """Connect people to Spotify, and return clients for some of them, who can use the player."""
        others = [person["id"] for person in self.sandbox.people()]
        ids = [person["id"] for person in self.sandbox.seed(self._plan.connections - len(others))] + others
        people = [Person(self.balancer.certificate, id_, f"person{n}") for n, id_ in enumerate(ids)]
        for person in people[:CLIENTS]:
            eventually(person.register)
        for person in people:
            eventually(partial(person.connect_spotify, self.sandbox))
        for person in people[:CLIENTS]:
            eventually(person.choose_device)
        return Clients(
            [
                Client(person, random.Random(f"{self._plan.seed}.{person.username}"), self.returned)
                for person in people[:CLIENTS]
            ]
        )

    def make_due_grants(self) -> DueGrants | None:
        if not self._plan.grants:
            return None
        due = DueGrants(self.hosts[0].engine, self._cipher, self.sandbox, self._plan.grants)
        time.sleep(SETTLE_SECONDS)  # refreshes are in progress when the fault begins
        return due

    def primary(self) -> Host:
        """Return the host with the primary Redis."""
        addresses = [host.address for host in self.hosts]
        address = states.redis_primary(addresses, self.setup.passwords["SERVERS_PASSWORD"])
        return next(host for host in self.hosts if host.address == address)

    def target(self) -> Host:
        """Return the host to hit."""
        if self._plan.host is not None:
            return self.hosts[self._plan.host - 1]
        other = self.random.choice(self.hosts) if self.setup.redis == "cluster" else self.primary()
        return self.random.choice((self.hosts[0], other))

    def wait_until_any_may_fail(self) -> None:
        """Wait until the cluster survives the next fault, whichever host it hits."""
        eventually(lambda: all(host.is_redis_ready_for_failure() for host in self.hosts), START_SECONDS)
        wait_until_whole(self.hosts)

    def logs(self, lines: int = 60) -> str:
        return "\n".join(host.logs(lines) for host in self.hosts)


# More time before a server counts as gone, for a machine that is busy with other tests.
PATIENT: Mapping[str, str] = {
    "evs.suspect_timeout=PT1.5S": "evs.suspect_timeout=PT5S",
    "evs.inactive_timeout=PT3S": "evs.inactive_timeout=PT10S",
    "evs.install_timeout=PT3S": "evs.install_timeout=PT10S",
    "gmcast.peer_timeout=PT1.5S": "gmcast.peer_timeout=PT5S",
    "down-after-milliseconds backline 1000": "down-after-milliseconds backline 4000",
    "failover-timeout backline 2000": "failover-timeout backline 10000",
    "min-replicas-max-lag 2": "min-replicas-max-lag 10",
    "repl-timeout 5": "repl-timeout 20",
}


def run(plan: Plan, say: Callable[[str], None]) -> Result:
    """Do everything in the plan."""
    cluster = Cluster(plan, say)
    result = Result()
    try:
        with cluster.make_clients() as clients:
            clients.wait_until_all_succeed()
            time.sleep(SETTLE_SECONDS)  # a failover may lose sessions from the last second (decision 64)
            for name in plan.faults:
                outcome = _hit(cluster, clients, name, plan.seconds)
                result.outcomes.append(outcome)
                say(str(outcome))
                if outcome.gap > GAP_SECONDS and not plan.patient:
                    say(f"in the gap: {outcome.requests_in_gap}")
                    say(cluster.logs(lines=400))
            fresh = _wait_until_fresh(cluster, plan.lifetime, result)
            say(f"every grant was refreshed within {fresh:.0f} s")
        result.violations += [
            f"{client.person.username}, {count} times: {violation}"
            for client in clients.clients
            for violation, count in client.violations.items()
        ]
        result.violations += [right for host in cluster.hosts for right in host.excessive_rights()]
        _check_history(cluster, result)
        _check_nodes(cluster, result)
        result.violations += [leak for host in cluster.hosts for leak in host.scan_logs()]
        _check_calls(cluster.sandbox.calls(), result)
    except BaseException:
        say(cluster.logs())
        raise
    if result.violations:
        say(cluster.logs())
    return result


def _hit(cluster: Cluster, clients: Clients, name: str, seconds: float) -> Outcome:
    cluster.wait_until_any_may_fail()
    host = cluster.target()
    due = cluster.make_due_grants()
    began, began_at = time.monotonic(), datetime.now(UTC)
    with faults.FAULTS[name](cluster.hosts, host):
        time.sleep(seconds)
    healed = time.monotonic()
    wait_until_whole(cluster.hosts)
    rejoined = time.monotonic()
    clients.wait_until_all_succeed()
    time.sleep(SETTLE_SECONDS)
    ended = time.monotonic()
    refreshed_within, pause = due.wait(cluster.hosts[0].engine) if due else (None, None)
    cluster.faults.append(Fault(name, began_at, datetime.now(UTC)))
    results = [
        result for client in clients.clients for result in client.results if began <= result.at <= ended
    ]
    gap = max((client.gap(began, ended) for client in clients.clients), key=lambda gap: gap.seconds)
    return Outcome(
        name,
        "all" if name == "rollout" else host.name,
        gap=gap.seconds,
        requests_in_gap=str(gap),
        slowest=max((result.seconds for result in results), default=0.0),
        requests=len(results),
        failures=Counter(result.failure for result in results if result.failure is not None),
        unavailable=[result.seconds for result in results if result.failure == "503"],
        rejoin=rejoined - healed,
        refreshed_within=refreshed_within,
        pause=pause,
    )


def _wait_until_fresh(cluster: Cluster, lifetime: int, result: Result) -> float:
    """I7: wait until every valid grant was refreshed after the last fault. Returns how long that took."""
    healed = time.monotonic()

    def stale() -> list[tuple[str, float]]:
        passed = int(time.monotonic() - healed)
        return cluster.log.stale_connections(cluster.sandbox, max(0, lifetime - passed))

    try:
        eventually(lambda: not stale(), FRESH_SECONDS)
    except AssertionError:
        result.violations += [f"I7: {what} {FRESH_SECONDS:.0f} s after the last fault" for what, _ in stale()]
    return time.monotonic() - healed


def _check_history(cluster: Cluster, result: Result) -> None:
    """Check I1 to I8, when everything has stopped."""
    for host in cluster.hosts:
        host.stop_backline()
    history = cluster.log.history(cluster.sandbox, [], cluster.faults, cluster.returned, [])
    report = check(history)
    result.violations += report.violations
    result.violations += [f"lost: {grant}" for grant in report.destroyed_by_provider]
    result.refreshes = report.refreshes
    result.calls_per_generation = report.calls_per_generation


def _check_calls(journal: list[dict[str, Any]], result: Result) -> None:
    """Check what Spotify has received: no write twice, and no more refreshes than the rate allows."""
    result.violations += [f"sent twice: {write}" for write in sent_twice(journal)]
    result.fastest = most_refreshes(journal, RATE_SECONDS)
    allowed = REFRESH_RATE * (RATE_SECONDS + 1)  # a second of it may come at once
    if result.fastest > allowed:
        result.violations.append(
            f"{result.fastest} refreshes in {RATE_SECONDS} s: only {allowed} are allowed"
        )


def _check_nodes(cluster: Cluster, result: Result) -> None:
    """Compare the data of the three nodes."""
    tables: Sequence[str] = [*cluster.tables, "access_tokens_log", "token_refreshes_log"]
    found = [states.checksums(host.engine, tables) for host in cluster.hosts]
    for table in tables:
        sums = [one[table] for one in found]
        if len(set(sums)) > 1:
            result.violations.append(f"the nodes differ in {table}: {sums}")
