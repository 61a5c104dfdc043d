"""Who a request is from: one round trip to Redis, no SQL while nothing changes, and never stale.

`app` and `another_worker` are like two processes: they share the servers, and remember rows separately.
"""

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import db
from app.infra.row_versions import Change, is_label, user_version
from app.models.snapshots import Snapshot
from app.web import snapshot_cache
from app.web.snapshot_cache import Remembered, Versions
from tests.helpers.announcements import forget_versions
from tests.helpers.flows import PASSWORD, another_tab, connect, login, register, slug
from tests.helpers.round_trips import counting
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.sqlite_only

NewClient = Callable[[], FlaskClient]
READS = ["/api/session", "/api/user", "/api/spotify", "/api/spotify/token", "/api/spotify/authorize"]


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    """The Redis client of the app."""
    found: redis.Redis = app.extensions["backline"].redis
    return found


@pytest.fixture
def ada(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """A person who is signed in and connected, and whose rows are remembered."""
    register(client, "ada")
    connect(client, sandbox)
    wait_for_background_work(client.application)  # sending the confirmation changes the account's version
    warm(client)
    return client


def warm(client: FlaskClient) -> None:
    for _ in range(2):
        assert client.get("/api/session").status_code == 200


def edit(app: Flask, statement: str) -> None:
    """Change rows behind the application's back: without a word to Redis, or to `tests.helpers`."""
    with app.app_context(), db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.execute(statement)
        driver.commit()


def versions_of(store: redis.Redis) -> dict[str, Any]:
    return {key.decode(): store.get(key) for key in store.keys("version:*")}


# --- round trips ---------------------------------------------------------------------------------


def test_read_of_what_is_remembered_takes_one_round_trip(ada: FlaskClient, app: Flask) -> None:
    for path in READS:
        ada.get(path)

        with counting(app) as made:
            assert ada.get(path).status_code == 200

        assert (made.redis, made.sql) == (["GETEX GET GET"], []), path


def test_read_of_what_has_changed_takes_one_statement_more(ada: FlaskClient, app: Flask) -> None:
    for number, path in enumerate(READS):
        ada.get(path)
        ada.patch("/api/user", json={"username": f"lovelace{number}"})

        with counting(app) as made:
            assert ada.get(path).status_code == 200

        assert made.redis == ["GETEX GET GET"], path
        assert [word for word in made.sql if word == "SELECT"] == ["SELECT"], path


def test_first_request_of_a_session_takes_two_round_trips(ada: FlaskClient, another_worker: Flask) -> None:
    with counting(another_worker) as made:
        assert another_tab(ada, another_worker).get("/api/session").json["authenticated"]

    assert made.redis == ["GETEX", "SET GET SET GET"]
    assert made.sql.count("SELECT") == 1


def test_sessions_of_one_person_share_what_is_remembered(
    ada: FlaskClient, new_client: NewClient, app: Flask
) -> None:
    login(elsewhere := new_client(), "ada")

    with counting(app) as made:
        assert elsewhere.get("/api/user").json["username"] == "ada"

    assert made.sql == []


def test_visitor_without_a_session_needs_no_round_trip(client: FlaskClient, app: Flask) -> None:
    with counting(app) as made:
        assert client.get("/api/session").json == {"authenticated": False, "user": None, "spotify": None}

    assert made.counts == (0, 0)


def test_visitor_with_a_connection_needs_one_round_trip(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    warm(client)

    with counting(app) as made:
        assert client.get("/api/session").json["spotify"]["status"] == "connected"

    assert made.counts == (1, 0)


def test_request_that_needs_no_session_makes_no_round_trip(ada: FlaskClient, app: Flask) -> None:
    requests: list[tuple[str, str, dict[str, str], int]] = [
        ("GET", "/api/nothing", {}, 404),
        ("DELETE", "/api/session", {}, 405),
        ("OPTIONS", "/api/session", {"Origin": "http://127.0.0.1:5173"}, 200),
        ("GET", "/api/session", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("POST", "/api/logout", {"Origin": "https://evil.example"}, 403),
        ("GET", "/api/openapi.json", {}, 200),
        ("GET", "/livez", {}, 200),
    ]
    with counting(app) as made:
        for method, path, headers, status in requests:
            assert ada.open(path, method=method, headers=headers).status_code == status, (method, path)

    assert made.counts == (0, 0)


# --- never stale ---------------------------------------------------------------------------------


def test_change_in_one_process_is_seen_in_another_at_once(ada: FlaskClient, another_worker: Flask) -> None:
    other = another_tab(ada, another_worker)
    warm(other)

    for name in ("lovelace", "countess", "byron"):
        assert ada.patch("/api/user", json={"username": name}).status_code == 200
        assert other.get("/api/user").json["username"] == name
        assert other.get("/api/session").json["user"]["username"] == name


def test_sign_out_everywhere_by_a_new_password_is_seen_in_another_process_at_once(
    ada: FlaskClient, new_client: NewClient, another_worker: Flask
) -> None:
    login(elsewhere := new_client(), "ada")
    other = another_tab(elsewhere, another_worker)
    warm(other)

    change = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
    assert ada.put("/api/user/password", json=change).status_code == 204

    assert slug(other.get("/api/user")) == "not-signed-in"
    assert ada.get("/api/user").status_code == 200


def test_disconnect_and_new_consent_are_seen_in_another_process_at_once(
    ada: FlaskClient, another_worker: Flask, sandbox: SandboxClient
) -> None:
    other = another_tab(ada, another_worker)
    warm(other)

    assert ada.delete("/api/spotify").status_code == 204
    assert other.get("/api/spotify").json == {"status": "not_connected"}
    assert slug(other.get("/api/spotify/token")) == "spotify-not-connected"

    connect(ada, sandbox)
    assert other.get("/api/spotify").json["status"] == "connected"
    token = other.get("/api/spotify/token").json["access_token"]
    assert token == ada.get("/api/spotify/token").json["access_token"]


def test_row_that_is_being_changed_is_read_and_not_remembered(ada: FlaskClient, app: Flask) -> None:
    """Nothing that a reader sees between the writer's marker and its end is used afterwards."""
    versions = app.extensions["row_versions"]
    change = Change.of(users=[ada.get("/api/user").json["id"]])
    versions.begin(change)

    with counting(app) as made:
        assert ada.get("/api/user").json["username"] == "ada"
        edit(app, "UPDATE users SET username = 'lovelace'")
        assert ada.get("/api/user").json["username"] == "lovelace"
    assert made.sql.count("SELECT") == 2

    versions.end(change)
    assert ada.get("/api/user").json["username"] == "lovelace"


def test_label_is_read_before_the_row(ada: FlaskClient, app: Flask) -> None:
    """A change between the two leaves the reader with the old label, which is never valid again."""
    versions = app.extensions["row_versions"]
    user_id = ada.get("/api/user").json["id"]
    edit(app, "UPDATE users SET username = 'before'")
    forget_versions()
    read_rows = snapshot_cache._read_rows

    def change_meanwhile(subject: Any) -> Any:
        snapshot = read_rows(subject)
        change = Change.of(users=[user_id])
        versions.begin(change)
        edit(app, "UPDATE users SET username = 'after'")
        versions.end(change)
        return snapshot

    with patch.object(snapshot_cache, "_read_rows", change_meanwhile):
        assert ada.get("/api/user").json["username"] == "before"

    assert ada.get("/api/user").json["username"] == "after"


def test_label_from_before_a_restart_of_redis_is_not_trusted(
    ada: FlaskClient, app: Flask, store: redis.Redis
) -> None:
    """Redis may have lost its last second, and with it a change that was announced."""
    old = versions_of(store)
    ada.patch("/api/user", json={"username": "lovelace"})
    edit(app, "UPDATE users SET username = 'ada'")
    warm(ada)
    edit(app, "UPDATE users SET username = 'lovelace'")
    before = versions_of(store)
    assert before.keys() == old.keys()

    store.connection_pool.disconnect()  # what a restart does

    assert versions_of(store) == before
    assert ada.get("/api/user").json["username"] == "lovelace"


def test_nothing_is_remembered_for_longer_than_a_minute(ada: FlaskClient, app: Flask) -> None:
    edit(app, "UPDATE users SET username = 'by-hand'")
    assert ada.get("/api/user").json["username"] == "ada"
    later = time.monotonic() + snapshot_cache.MAX_AGE_SECONDS

    with patch("app.infra.expiring_cache.time", SimpleNamespace(monotonic=lambda: later)):
        assert ada.get("/api/user").json["username"] == "by-hand"


def test_label_that_has_expired_is_replaced(ada: FlaskClient, app: Flask, store: redis.Redis) -> None:
    old = versions_of(store)
    forget_versions()
    edit(app, "UPDATE users SET username = 'lovelace'")

    assert ada.get("/api/user").json["username"] == "lovelace"
    with counting(app) as made:
        ada.get("/api/user")

    assert made.counts == (1, 0)
    labels = versions_of(store)
    assert labels.keys() == old.keys()
    assert all(is_label(label) for label in labels.values())
    assert set(labels.values()).isdisjoint(old.values())


def test_version_that_is_no_label_is_not_trusted(ada: FlaskClient, app: Flask, store: redis.Redis) -> None:
    key = user_version(ada.get("/api/user").json["id"])
    plants = (partial(store.rpush, key, "label"), partial(store.set, key, ""))
    for plant in plants:
        store.delete(key)
        plant()
        for name in ("lovelace", "countess"):
            edit(app, f"UPDATE users SET username = '{name}'")
            assert ada.get("/api/user").json["username"] == name


def test_redis_that_accepts_no_new_keys_costs_only_speed(
    ada: FlaskClient, app: Flask, store: redis.Redis
) -> None:
    forget_versions()
    store.config_set("maxmemory", "1")
    try:
        for name in ("lovelace", "countess"):
            edit(app, f"UPDATE users SET username = '{name}'")
            assert ada.get("/api/user").json["username"] == name
    finally:
        store.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    ("values", "labels", "connected_at", "confirms"),
    [
        ({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"2"}, 10.0, True),
        ({"a": b"1", "b": b"3"}, {"a": b"1", "b": b"2"}, 10.0, False),
        ({"a": b"1", "b": None}, {"a": b"1", "b": None}, 10.0, False),
        ({"a": b"1"}, {"a": b"1", "b": None}, 10.0, False),
        ({"a": b"1"}, {"a": b"1", "b": b"2"}, 10.0, False),
        ({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"2"}, 10.1, False),
    ],
    ids=["equal", "changed", "never labeled", "not read", "not read now", "another connection"],
)
def test_snapshot_is_confirmed_by_all_of_its_labels(
    values: dict[str, Any], labels: dict[str, Any], connected_at: float, confirms: bool
) -> None:
    remembered = Remembered(Snapshot(None, None), labels, labeled_at=10.0)

    assert Versions(values, read_at=20.0, connected_at=connected_at).confirm(remembered) is confirms


def test_session_is_never_remembered(ada: FlaskClient, store: redis.Redis) -> None:
    [key] = store.keys("session:*")
    kept: Any = store.getdel(key)

    assert not ada.get("/api/session").json["authenticated"]
    store.set(key, kept)
    assert ada.get("/api/session").json["authenticated"]


def test_snapshot_shows_no_secret(ada: FlaskClient, app: Flask) -> None:
    token = ada.get("/api/spotify/token").json["access_token"]
    cache = app.extensions["snapshots"]

    shown = repr(cache._entries._entries)

    assert "access_token" not in shown
    assert token not in shown
    assert "mira_t_42" in shown


def test_deleted_rows_are_not_remembered(ada: FlaskClient, app: Flask) -> None:
    edit(app, "DELETE FROM users")
    forget_versions()

    for path in ("/api/user", "/api/spotify/token"):
        assert ada.get(path).status_code in (401, 404, 409)
    assert not ada.get("/api/session").json["authenticated"]


def test_change_is_not_made_if_no_process_could_be_told(
    ada: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = app.extensions["row_versions"]

    def fail(_change: Change) -> None:
        raise redis.ConnectionError

    monkeypatch.setattr(versions, "begin", fail)
    assert slug(ada.patch("/api/user", json={"username": "lovelace"})) == "service-unavailable"

    with app.app_context(), db.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT username FROM users")).scalar() == "ada"
