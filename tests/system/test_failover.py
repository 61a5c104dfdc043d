"""After a failover, connections to the old server are replaced, even if it still responds."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from redis.connection import Connection

from app.infra import redis_client as redis_connections
from app.infra import staleness
from app.infra.redis_client import Pool, redis_client
from app.infra.redis_refusals import Refused
from app.infra.redis_round_trip import round_trip
from app.web import sessions
from tests.conftest import MakeApp, cannot_run
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import register
from tests.helpers.processes import RedisServer
from tests.helpers.servers import LONG, Unavailable

IDLE_CONNECTIONS = 4


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis take its time on a busy machine, and keep connections that are idle meanwhile."""
    monkeypatch.setattr(staleness, "IDLE_SECONDS", LONG)
    for name in ("CONNECT_SECONDS", "REPLY_SECONDS"):
        monkeypatch.setattr(redis_connections, name, LONG)


@pytest.fixture
def new_primary(redis_url: str) -> str:
    """The socket of the Redis that takes over."""
    return redis_url.removeprefix("unix://")


@pytest.fixture
def old_primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with ExitStack() as stack:
        try:
            server = RedisServer(Path(tmp_path_factory.mktemp("redis")))
        except Unavailable as error:
            cannot_run(error)
        yield stack.enter_context(server)
        server.client.close()


def fill(client: redis.Redis) -> None:
    """Leave several idle connections in the pool."""
    pool = client.connection_pool
    for connection in [pool.get_connection() for _ in range(IDLE_CONNECTIONS)]:
        pool.release(connection)


def demote(server: redis.Redis) -> None:
    server.replicaof("127.0.0.1", "1")


def lose_replicas(server: redis.Redis) -> None:
    server.config_set("min-replicas-to-write", "1")


def hide_stale_data(server: redis.Redis) -> None:
    server.config_set("replica-serve-stale-data", "no")
    demote(server)


def forbid(server: redis.Redis) -> None:
    server.execute_command("ACL", "SETUSER", "default", "-getex")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("retire", "first_status"),
    # What another server may accept is sent again. A missing permission is a fault of the operator's.
    [(demote, 200), (lose_replicas, 200), (hide_stale_data, 200), (forbid, 503)],
)
def test_session_works_after_redis_failover(
    make_app: MakeApp,
    old_primary: RedisServer,
    new_primary: str,
    retire: Callable[[redis.Redis], None],
    first_status: int,
) -> None:
    with FaultProxy(old_primary.socket) as proxy:
        app = make_app(REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0")
        client = app.test_client()
        register(client)
        fill(app.extensions["backline"].redis)
        retire(old_primary.client)
        proxy.upstream = new_primary  # for new connections only
        assert client.get("/api/session").status_code == first_status

        for _ in range(2 * IDLE_CONNECTIONS):
            assert client.get("/api/session").status_code == 200


class FailingRedis(socketserver.ThreadingTCPServer):
    """A Redis that replies to every command except PING with the same error."""

    daemon_threads = True

    def __init__(self, reply: str) -> None:
        self.reply = reply
        super().__init__(("127.0.0.1", 0), _ErrorReply)


class _ErrorReply(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2))
            ping = words[0].upper() == b"PING\r\n"
            self.wfile.write(b"+PONG\r\n" if ping else f"-{self.server.reply}\r\n".encode())  # type: ignore[attr-defined]


@contextmanager
def failing_redis(reply: str) -> Iterator[tuple[str, int]]:
    with FailingRedis(reply) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()


REFUSALS = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a replica.",
]
OTHER_ERRORS = [
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "ERR unknown command 'GETEX', with args beginning with: 'session:x'",
    "upstream failure",
]


@pytest.mark.parametrize("reply", OTHER_ERRORS, ids=lambda reply: reply.split()[0])
def test_error_reply_replaces_all_older_connections(reply: str, new_primary: str) -> None:
    with failing_redis(reply) as old, FaultProxy(old) as proxy:
        client = redis_client(f"redis://127.0.0.1:{proxy.port}/0")
        fill(client)
        proxy.upstream = new_primary
        with pytest.raises(redis.RedisError):
            client.getex("session:x", ex=5)

        assert [client.getex("session:x", ex=5) for _ in range(2 * IDLE_CONNECTIONS)] == [None] * 8
        client.close()


@pytest.mark.parametrize("reply", REFUSALS, ids=lambda reply: reply.split()[0])
def test_refused_commands_are_sent_to_the_server_that_took_over(reply: str, new_primary: str) -> None:
    with failing_redis(reply) as old, FaultProxy(old) as proxy:
        client = redis_client(f"redis://127.0.0.1:{proxy.port}/0")
        fill(client)
        proxy.upstream = new_primary

        assert [client.incr("x") for _ in range(2 * IDLE_CONNECTIONS)] == [*range(1, 9)]
        client.close()


def test_connection_to_another_server_replaces_all_older_ones(new_primary: str) -> None:
    """A process must not compare at one server what it has read from another (decision 64)."""
    with FaultProxy(new_primary) as former, FaultProxy(new_primary) as current:
        ports = [former.port, current.port]
        pool = Pool(Connection, find_server=lambda: ("127.0.0.1", ports[0]), socket_timeout=LONG)
        held = [pool.get_connection() for _ in range(IDLE_CONNECTIONS)]
        ports.pop(0)
        for connection in (*held, pool.get_connection()):
            pool.release(connection)

        again = [pool.get_connection() for _ in range(IDLE_CONNECTIONS + 1)]

        assert {connection.port for connection in again} == {current.port}
        for connection in again:
            pool.release(connection)
        pool.disconnect()


@pytest.mark.parametrize("reply", REFUSALS, ids=lambda reply: reply.split()[0])
def test_refused_command_is_an_outage_if_no_server_takes_over(
    reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "PAUSE_SECONDS", LONG)
    with failing_redis(reply) as (host, port):
        client = redis_client(f"redis://{host}:{port}/0")
        with pytest.raises(Refused) as raised:
            round_trip(client, [("GET", "x"), ("SET", "x", 1)])
        assert isinstance(raised.value, redis.ConnectionError)
        [connection] = cast("Any", client.connection_pool)._available_connections
        assert connection._sock is not None  # all connections have been replaced once, and stay open now
        client.close()


def test_refusals_open_no_more_connections_than_other_errors(
    old_primary: RedisServer, new_primary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without replicas, Redis may refuse all writes for hours."""
    monkeypatch.setattr(staleness, "PAUSE_SECONDS", LONG)
    with FaultProxy(old_primary.socket) as proxy:
        client = redis_client(f"redis://127.0.0.1:{proxy.port}/0")
        fill(client)
        lose_replicas(old_primary.client)
        before = connections_to(old_primary)

        def write(_: int) -> None:
            with pytest.raises(Refused):
                client.set("x", 1)

        with ThreadPoolExecutor(IDLE_CONNECTIONS) as pool:
            list(pool.map(write, range(100)))

        assert 1 <= connections_to(old_primary) - before <= IDLE_CONNECTIONS
        proxy.upstream = new_primary
        with pytest.raises(Refused):
            client.set("x", 1)
        monkeypatch.setattr(staleness, "PAUSE_SECONDS", 0.0)
        assert client.set("x", 1)
        client.close()


def connections_to(server: RedisServer) -> int:
    return int(server.client.info("stats")["total_connections_received"])


def test_only_what_was_refused_is_sent_again(old_primary: RedisServer) -> None:
    """Half of a pipeline may have been executed before the server was demoted."""
    client = redis_client(f"unix://{old_primary.socket}")
    old_primary.client.set("x", 0)
    refuse = "if redis.call('INCR', KEYS[1]) == 1 then return redis.error_reply('READONLY once') end return 7"

    replies = round_trip(client, [("INCR", "x"), ("EVAL", refuse, 1, "y"), ("INCR", "x")])

    assert replies.values == [1, 7, 2]
    client.close()


def test_error_in_transaction_replaces_all_older_connections(
    old_primary: RedisServer, new_primary: str
) -> None:
    with FaultProxy(old_primary.socket) as proxy:
        client = redis_client(f"redis://127.0.0.1:{proxy.port}/0")
        fill(client)
        demote(old_primary.client)
        proxy.upstream = new_primary
        # The error comes in the reply to EXEC, as one of its results.
        for fails in (True, *(False,) * IDLE_CONNECTIONS):
            with client.pipeline(transaction=True) as batch:
                batch.eval("return redis.call('SET', KEYS[1], '1')", 1, "session:x")
                with pytest.raises(redis.ResponseError) if fails else nullcontext():
                    batch.execute()
        client.close()


@pytest.mark.parametrize(
    "command",
    [("RENAME", "absent", "{absent}"), ("EVALSHA", "0" * 40, 0)],
    ids=["missing key", "missing script"],
)
def test_error_about_data_keeps_the_connections(redis_url: str, command: tuple[str | int, ...]) -> None:
    client = redis_client(redis_url)
    used = client.client_id()
    with pytest.raises(redis.ResponseError):
        client.execute_command(*command)
    assert client.client_id() == used
    client.close()


def test_old_connection_is_replaced(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the server may lead to another one by now."""
    client = redis_client(redis_url)
    used = client.client_id()
    assert client.client_id() == used
    monkeypatch.setattr(staleness, "MAX_AGE_SECONDS", 0.0)
    assert client.client_id() != used
    client.close()


@pytest.mark.requirement("L3")
def test_redis_with_too_many_clients_serves_callers_in_turn(old_primary: RedisServer) -> None:
    """`maxclients` is reached: callers wait for a connection of ours instead of failing."""
    client = redis_client(f"unix://{old_primary.socket}")
    old_primary.client.config_set("maxclients", "3")
    barrier = threading.Barrier(8)

    def call(_: int) -> bool:
        barrier.wait()
        return all(client.set("x", "1") for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))
    client.close()


def test_idle_redis_connection_is_replaced(redis_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall forgets idle connections without telling either side."""
    monkeypatch.setattr(staleness, "IDLE_SECONDS", 0.1)
    client = redis_client(f"redis://127.0.0.1:{redis_proxy.port}/0")
    fill(client)
    redis_proxy.lose_connections()
    time.sleep(0.15)

    assert client.set("x", "1")
    client.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_session_is_not_created_on_a_replica(make_app: MakeApp, old_primary: RedisServer) -> None:
    """It would be missed only after an account was made."""
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    with app.test_request_context("/api/session"):
        sessions.persist()
        demote(old_primary.client)
        with pytest.raises(Refused):
            sessions.require_store()
