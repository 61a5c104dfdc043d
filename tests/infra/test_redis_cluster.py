"""The client for a Redis Cluster: it finds the node for each key, also while slots move and nodes fail."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from app.doctor.redis_nodes import check_redis_nodes
from app.doctor.redis_server import check_redis
from app.infra import redis_scripts
from app.infra.http_client import HttpResponse
from app.infra.probes import probe_redis
from app.infra.redis_client import Client, redis_client
from app.infra.redis_cluster import SlotMap, slot_of
from app.infra.redis_refusals import Refused
from app.infra.redis_round_trip import round_trip
from app.infra.row_versions import _BEGIN
from deploy import empty_redis
from tests.conftest import MakeApp
from tests.helpers import devices, time_limits
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import register
from tests.helpers.redis_cluster import ClusterDeployment
from tests.helpers.redis_nodes import RedisNode
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import patient
from tests.infra.test_probes import use_all_features


@pytest.fixture
def store(redis_cluster: ClusterDeployment) -> Iterator[Client]:
    redis_cluster.flush()
    client = cast("Client", patient(redis_client(redis_cluster.url)))
    yield client
    client.close()


def slots(client: Client) -> SlotMap:
    return cast("SlotMap", cast("Any", client.connection_pool).slots())


def keys_of_all_nodes(client: Client) -> list[str]:
    return [f"{{{tag}}}" for tag in slots(client).tags()]


def move_slot(cluster: ClusterDeployment, key: str) -> tuple[RedisNode, RedisNode]:
    """Begin to move the slot of a key. Returns the node that has it, and the one that will have it."""
    source = cluster.primary_of(key)
    target = next(node for node in cluster.primaries if node is not source)
    cluster.set_slot(target, key, "IMPORTING", source)
    cluster.set_slot(source, key, "MIGRATING", target)
    return source, target


def test_restoring_a_backup_empties_all_nodes(store: Client, redis_cluster: ClusterDeployment) -> None:
    for number in range(3000):  # more than one step for each node
        store.set(f"session:{number}", "")

    empty_redis.empty(store)

    assert [node.client.dbsize() for node in redis_cluster.primaries] == [0, 0, 0]


def test_commands_of_one_round_trip_go_to_the_nodes_that_have_their_keys(store: Client) -> None:
    keys = keys_of_all_nodes(store)
    assert len(keys) == 3

    replies = round_trip(store, [("SET", key, key) for key in keys] + [("GET", key) for key in keys])

    assert replies.values == [b"OK"] * 3 + [key.encode() for key in keys]
    assert replies.connected_at >= slots(store).changed_at > 0


def test_plain_commands_work_as_with_one_server(store: Client) -> None:
    assert store.zadd("z", {"a": 1.5}) == 1
    assert store.zrange("z", 0, -1, withscores=True) == [(b"a", 1.5)]
    assert store.set("x", "1", nx=True) is True
    assert store.set("x", "1", nx=True) is None
    assert isinstance(store.time(), tuple)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.get("z")
    with pytest.raises(redis.RedisError, match="do not work in a cluster"):
        store.pipeline().get("x").execute()


def test_script_runs_on_a_node_that_has_not_seen_it(store: Client) -> None:
    for key in keys_of_all_nodes(store):
        redis_scripts.call(store, _BEGIN, [key], "token", 60_000)
        assert store.get(key) == b"!token"


def test_probe_asks_every_primary(store: Client, redis_cluster: ClusterDeployment) -> None:
    probe_redis(store)
    last = redis_cluster.primaries[-1].client
    last.config_set("min-replicas-to-write", "1")
    try:
        with pytest.raises(Refused):
            probe_redis(store)
    finally:
        last.config_set("min-replicas-to-write", "0")


def test_keys_are_found_while_their_slot_moves(store: Client, redis_cluster: ClusterDeployment) -> None:
    store.set("{a}old", "1")
    source, target = move_slot(redis_cluster, "{a}")
    before = slots(store)

    # ASK: the slot still belongs to the source, which does not have the key.
    assert round_trip(store, [("SET", "{a}new", 2), ("GET", "{a}new"), ("GET", "{a}old")]).values == [
        b"OK",
        b"2",
        b"1",
    ]
    assert slots(store) is before

    source.client.execute_command("MIGRATE", target.host, target.port, "{a}old", 0, 20_000)  # type: ignore[no-untyped-call]
    for node in redis_cluster.primaries:
        redis_cluster.set_slot(node, "{a}", "NODE", target)
    # MOVED
    replies = round_trip(store, [("GET", "{a}old"), ("GET", "{a}new")])
    assert replies.values == [b"1", b"2"]
    assert replies.connected_at >= slots(store).changed_at > before.changed_at


def test_key_of_which_no_node_is_in_charge_is_an_outage(
    store: Client, redis_cluster: ClusterDeployment
) -> None:
    store.get("x")
    node = redis_cluster.primary_of("x")
    slot = node.client.execute_command("CLUSTER", "KEYSLOT", "x")  # type: ignore[no-untyped-call]
    for each in redis_cluster.primaries:
        each.client.execute_command("CLUSTER", "DELSLOTS", slot)  # type: ignore[no-untyped-call]
    try:
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                store.get("x")
    finally:
        node.client.execute_command("CLUSTER", "ADDSLOTS", slot)  # type: ignore[no-untyped-call]
        redis_cluster.wait_until_ok()
    assert store.get("x") is None


@pytest.mark.sqlite_only
def test_every_feature_works(
    make_app: MakeApp,
    redis_cluster: ClusterDeployment,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No script or command uses keys of several slots. Some errors would only be logged."""
    redis_cluster.flush()
    time_limits.lengthen(monkeypatch)
    app = make_app(REDIS_URL=redis_cluster.url)
    use_all_features(app, sandbox)
    device, person = devices.device_client(app), app.test_client()
    register(person)
    started = devices.start(device)
    assert devices.oauth_error(devices.poll(device, started)) == "authorization_pending"
    assert devices.approve(person, started).status_code == 204
    rights = {"limit": 1, "seconds": 60}
    with app.test_request_context():
        services = app.extensions["backline"]
        services.throttle.hit("mails", "x", **rights)
        services.throttle.attempt("x")
        services.throttle.succeed("x")
        assert services.rate_limiter.budget_usage()[0] > 0
        services.rate_limiter.block_all(HttpResponse(429, {}, b"{}"))
        assert services.rate_limiter.retry_after() > 0

    unavailable = {"lock_skipped", "lock_not_released", "rate_limit_per_process", "row_versions_unavailable"}
    unavailable |= {"web_api_waits_not_shared", "budget_not_counted", "response_cache_failed"}
    assert {record.message for record in caplog.records} & unavailable == set()


def test_doctor_describes_each_primary(store: Client, redis_cluster: ClusterDeployment) -> None:
    summaries = [result.summary for result in check_redis_nodes(redis_cluster.url, store)]

    assert summaries == [
        f"Redis: replicas of {node.host}:{node.port} ({count} slots): 0"
        for node in redis_cluster.primaries
        if (count := slots(store).primaries.count((node.host, node.port)))
    ]


def test_nothing_is_connected_before_the_first_command() -> None:
    client = redis_client("redis+cluster://127.0.0.1:1,127.0.0.1:2")

    with pytest.raises(redis.ConnectionError):
        client.get("x")
    client.close()


def test_one_server_that_is_no_cluster_is_an_error(redis_proxy: FaultProxy) -> None:
    client = redis_client(f"redis+cluster://127.0.0.1:{redis_proxy.port}")

    with pytest.raises(redis.ResponseError, match="cluster support disabled"):
        client.get("x")
    [result] = check_redis(client, is_production=False)
    assert result.advice == "This Redis is not a cluster. Use redis://host:6379/0."
    client.close()


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), b"a"),
        ((b"EVALSHA", b"sha", 2, "{a}1", "{a}2"), b"a"),
        (("EVAL", "return 1", 0), None),
        (("TIME",), None),
        (("SCRIPT", "LOAD", "return 1"), None),
    ],
)
def test_slot_is_that_of_the_first_key(command: tuple[str | bytes | int, ...], key: bytes | None) -> None:
    assert slot_of(command) == (None if key is None else redis.crc.key_slot(key))
