"""A failover of Redis loses the writes of the last moments. Whatever was ended stays ended."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.doctor.redis_nodes import check_redis_nodes
from app.doctor.redis_server import check_redis
from app.doctor.result import Status
from app.infra.database import writing
from app.infra.redis_client import redis_client
from app.infra.redis_keys import PERMISSIONS
from app.models import Right
from app.web.sessions import endings
from tests.conftest import MakeApp, start
from tests.helpers import time_limits
from tests.helpers.flows import PASSWORD, create_token, login, register
from tests.helpers.redis_cluster import running_cluster
from tests.helpers.redis_failover import (
    LossyDeployment,
    cut_replication,
    fail_over_in_cluster,
    lossy_deployment,
    replica_of,
)
from tests.helpers.redis_nodes import PASSWORD as REDIS_PASSWORD
from tests.helpers.redis_nodes import RedisNode
from tests.helpers.servers import LONG, eventually, patient

pytestmark = [pytest.mark.processes, pytest.mark.sqlite_only]


@pytest.fixture(autouse=True)
def _long_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    time_limits.lengthen(monkeypatch)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LossyDeployment]:
    with ExitStack() as stack:
        yield start(stack, lossy_deployment(tmp_path))


def respond(client: FlaskClient, path: str, **options: Any) -> TestResponse:
    """Return the first response that is no 503. During a failover, there may be some."""
    responses: list[TestResponse] = []

    def is_available() -> bool:
        responses.append(client.get(path, **options))
        return responses[-1].status_code != 503

    eventually(is_available)
    return responses[-1]


def is_signed_in(client: FlaskClient) -> bool:
    response = respond(client, "/api/session")
    assert response.status_code == 200, response.text
    return bool(response.json["authenticated"])


def sessions_in(node: RedisNode) -> set[bytes]:
    """Return the keys of all sessions."""
    return {key for key in node.client.scan_iter("session:*") if node.client.ttl(key) > 60}


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    return cookie.value


def with_cookie(app: Flask, value: str) -> FlaskClient:
    client = app.test_client()
    client.set_cookie("backline_session", value)
    return client


def sign_out(client: FlaskClient, _: FlaskClient) -> None:
    assert client.post("/api/logout").status_code == 204


def sign_out_from_list(client: FlaskClient, other: FlaskClient) -> None:
    [listed] = [one for one in client.get("/api/user/sessions").json["items"] if one["current"]]
    assert other.delete(f"/api/user/sessions/{listed['id']}").status_code == 204


def sign_in_as_someone_else(client: FlaskClient, _: FlaskClient) -> None:
    register(client, "someone.else")


def end_all_others(_: FlaskClient, other: FlaskClient) -> None:
    assert other.delete("/api/user/sessions").status_code == 204


def change_password(_: FlaskClient, other: FlaskClient) -> None:
    body = {"current_password": PASSWORD, "new_password": "another long passphrase"}
    assert other.put("/api/user/password", json=body).status_code == 204


@pytest.mark.parametrize(
    "end", [sign_out, sign_out_from_list, sign_in_as_someone_else, end_all_others, change_password]
)
def test_failover_does_not_bring_back_a_session(
    make_app: MakeApp, servers: LossyDeployment, end: Callable[[FlaskClient, FlaskClient], None]
) -> None:
    app, another_worker = make_app(REDIS_URL=servers.url), make_app(REDIS_URL=servers.url)
    client, other = app.test_client(), app.test_client()
    user = register(client)
    login(other, user["username"])
    cookie = cookie_of(client)
    revived = with_cookie(another_worker, cookie)
    assert is_signed_in(revived)  # this process remembers the rows from now on
    servers.replicate()
    before = sessions_in(servers.replica)

    servers.cut_replication()
    end(client, other)
    assert is_signed_in(other)
    servers.fail_over()

    assert sessions_in(servers.replica) == before  # it is back in Redis
    assert not is_signed_in(revived)
    assert not is_signed_in(with_cookie(app, cookie))


@contextmanager
def database_without_updates(app: Flask) -> Iterator[Callable[[], None]]:
    """Let every change of a user fail, until the end of the block or a call."""

    def execute(statement: str) -> None:
        with app.app_context(), writing() as db:
            db.execute(sa.text(statement))

    def recover() -> None:
        execute("DROP TRIGGER IF EXISTS fault")

    execute("CREATE TRIGGER fault BEFORE UPDATE ON users BEGIN INSERT INTO no_such_table VALUES (1); END")
    yield recover
    recover()


@pytest.mark.parametrize("is_listed", [False, True])
def test_sign_out_that_failed_can_be_repeated(
    make_app: MakeApp, servers: LossyDeployment, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """No replica confirms it, and the database fails too."""
    monkeypatch.setattr(endings, "DATABASE_SECONDS", 0.0)
    app = make_app(REDIS_URL=servers.url)
    client, other = app.test_client(), app.test_client()
    user = register(client)
    login(other, user["username"])
    cookie = cookie_of(client)
    [listed] = [one for one in client.get("/api/user/sessions").json["items"] if one["current"]]

    def end() -> int:
        if is_listed:
            return other.delete(f"/api/user/sessions/{listed['id']}").status_code
        return client.post("/api/logout").status_code

    servers.replicate()
    servers.cut_replication()
    with database_without_updates(app):
        assert [end(), end()] == [503, 503]
        assert not is_signed_in(with_cookie(app, cookie))
    assert end() == 204
    assert is_signed_in(other)
    assert not list(servers.primary.client.scan_iter("session:ended:*"))
    servers.fail_over()

    former = with_cookie(app, cookie)
    assert not is_signed_in(former)


def test_sign_out_waits_for_the_database(
    make_app: MakeApp,
    servers: LossyDeployment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(endings, "DATABASE_SECONDS", LONG)
    app = make_app(REDIS_URL=servers.url)
    client = app.test_client()
    register(client)
    servers.cut_replication()

    with ThreadPoolExecutor(1) as pool, database_without_updates(app) as recover:
        response = pool.submit(client.post, "/api/logout")
        eventually(lambda: "database_unavailable" in caplog.messages)
        recover()
        assert response.result().status_code == 204


def test_other_sessions_and_tokens_survive_a_sign_out_that_no_replica_confirms(
    make_app: MakeApp, servers: LossyDeployment
) -> None:
    app = make_app(REDIS_URL=servers.url)
    client, other = app.test_client(), app.test_client()
    user = register(client)
    login(other, user["username"])
    token = {"Authorization": f"Bearer {create_token(other, Right.ACCOUNT_READ)}"}
    servers.cut_replication()

    sign_out(client, other)

    assert is_signed_in(other)
    assert app.test_client().get("/api/user", headers=token).status_code == 200
    assert len(other.get("/api/user/sessions").json["items"]) == 1


def test_sign_out_that_a_replica_has_confirmed_changes_nothing_else(
    make_app: MakeApp, servers: LossyDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "REPLICA_MS", 60_000)
    app = make_app(REDIS_URL=servers.url)
    client, other = app.test_client(), app.test_client()
    user = register(client)
    login(other, user["username"])
    cookie = cookie_of(client)
    servers.replicate()

    sign_out(client, other)
    servers.fail_over()

    eventually(lambda: is_signed_in(other))  # it has not been given a new epoch, which would be lost now
    assert not is_signed_in(with_cookie(app, cookie))


def test_failover_does_not_bring_back_a_token(make_app: MakeApp, servers: LossyDeployment) -> None:
    app, another_worker = make_app(REDIS_URL=servers.url), make_app(REDIS_URL=servers.url)
    client, bearer = app.test_client(), another_worker.test_client()
    register(client)
    headers = {"Authorization": f"Bearer {create_token(client, Right.ACCOUNT_READ)}"}
    for _ in range(2):  # the second time, the process remembers the rows, with a label that is in Redis
        assert bearer.get("/api/user", headers=headers).status_code == 200
    servers.replicate()

    servers.cut_replication()
    [listed] = client.get("/api/user/tokens").json["items"]
    assert client.delete(f"/api/user/tokens/{listed['id']}").status_code == 204
    servers.fail_over()

    assert respond(bearer, "/api/user", headers=headers).status_code == 401


@pytest.mark.timeout(600)
def test_failover_of_a_cluster_does_not_bring_back_a_session(make_app: MakeApp, tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = start(stack, running_cluster(tmp_path, with_replicas=True))
        app, another_worker = make_app(REDIS_URL=cluster.url), make_app(REDIS_URL=cluster.url)
        client = app.test_client()
        register(client)
        cookie = cookie_of(client)
        revived = with_cookie(another_worker, cookie)
        assert is_signed_in(revived)
        [key] = [key.decode() for node in cluster.primaries for key in sessions_in(node)]
        primary = cluster.primary_of(key)
        replica = replica_of(cluster, primary)
        assert eventually(lambda: primary.client.wait(1, 1000) == 1)

        cut_replication(primary, [replica])
        sign_out(client, client)
        assert fail_over_in_cluster(cluster, key) is replica

        assert replica.client.exists(key)
        for worker in (another_worker, app):
            former = with_cookie(worker, cookie)
            assert not is_signed_in(former)


def test_doctor_asks_each_sentinel(servers: LossyDeployment) -> None:
    url = servers.url.replace("/main", ",127.0.0.1:1/main")
    client = redis_client(url)

    named, silent, primary = [result.summary for result in check_redis_nodes(url, client)]

    address = f"{servers.primary.host}:{servers.primary.port}"
    assert named.endswith(f": the primary is {address} (quorum 1 of 1, down after 3600000 ms)")
    assert silent.startswith("Redis: Sentinel 127.0.0.1:1: ConnectionError: ")
    assert primary == "Redis: replicas of the primary: 1; min-replicas-to-write is 0"
    client.close()


def test_doctor_notices_a_user_who_may_not_wait_for_replicas(servers: LossyDeployment) -> None:
    permissions = [word for word in PERMISSIONS.split() if word != "+wait"]
    servers.primary.client.execute_command("ACL", "SETUSER", "app", "on", f">{REDIS_PASSWORD}", *permissions)  # type: ignore[no-untyped-call]
    url = servers.url.replace("//:", "//app:")
    client = redis_client(url)

    result, sentinel = check_redis(client, is_production=False, url=url)

    assert result.status is Status.FAILURE
    assert "+wait" in result.advice
    assert sentinel.status is Status.WARNING  # a failover would take an hour
    client.close()


def test_nothing_is_waited_for_with_a_single_server(redis_url: str) -> None:
    client = patient(redis_client(redis_url))
    client.set("session:x", "1")
    client.config_resetstat()

    assert endings.delete(client, "session:x") == (True, True)

    assert "cmdstat_wait" not in client.info("commandstats")
    client.close()
