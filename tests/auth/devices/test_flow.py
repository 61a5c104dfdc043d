"""The device authorization grant: what device and person see, who may decide, and how often."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from unittest.mock import patch

import pytest
import redis
import sqlalchemy as sa
import sqlalchemy.exc
from flask import Flask
from flask.testing import FlaskClient

from app.auth.devices import flow, store
from app.auth.devices.flow import LOOKUPS_PER_HOUR, LOOKUPS_PER_HOUR_AND_ADDRESS, STARTS_PER_HOUR
from app.auth.devices.store import USER_CODE_LETTERS
from app.auth.personal_access_tokens import MAX_TOKENS
from app.infra.bearer_token import hash_token, is_well_formed
from app.infra.clock import utc_now
from app.infra.database import reading, writing
from app.infra.redis_cipher import compare_and_set
from app.infra.row_versions import announce
from app.models import PersonalAccessToken, User
from tests.conftest import SETTINGS, MakeApp
from tests.helpers import stored_sessions
from tests.helpers.devices import (
    age_polls,
    approve,
    deny,
    device_client,
    device_path,
    oauth_error,
    poll,
    start,
)
from tests.helpers.flows import PASSWORD, another_tab, create_token, login, register, slug
from tests.helpers.mail_server import RESET, Mailbox, token_in
from tests.helpers.redis_cluster import is_cluster

NewClient = Callable[[], FlaskClient]
Change = Callable[[FlaskClient, Mailbox], None]

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def device(app: Flask) -> FlaskClient:
    return device_client(app)


@pytest.fixture
def ada(new_client: NewClient) -> FlaskClient:
    register(client := new_client(), "ada")
    return client


@pytest.fixture
def eve(new_client: NewClient) -> FlaskClient:
    register(client := new_client(), "eve")
    return client


def issued(app: Flask) -> list[tuple[str, str, str]]:
    """Return the owner, the name, and the rights of every token."""
    columns = User.username, PersonalAccessToken.name, PersonalAccessToken.rights
    with app.app_context(), reading() as db:
        rows = db.execute(sa.select(*columns).join(User, PersonalAccessToken.user_id == User.id))
        return [(row[0], row[1], row[2]) for row in rows]


# --- the whole flow ----------------------------------------------------------------------------------


@pytest.mark.settings(FRONTEND_URL="http://127.0.0.1:5173/app/?theme=dark")
def test_device_gets_a_token_for_the_person_who_approves(
    device: FlaskClient, ada: FlaskClient, app: Flask
) -> None:
    started = start(device, client_name="  Ada's TV ❤️ ", scope="account:read  spotify:read spotify:read")
    assert (started["expires_in"], started["interval"]) == (600, 5)
    assert started["verification_uri"] == "http://127.0.0.1:5173/app/device"
    shown_uri = f"http://127.0.0.1:5173/app/device?code={started['user_code']}"
    assert started["verification_uri_complete"] == shown_uri
    assert oauth_error(poll(device, started)) == "authorization_pending"

    shown = ada.get(device_path(started)).json
    created_at, expires_at = (
        datetime.fromisoformat(shown.pop(name)) for name in ("created_at", "expires_at")
    )
    assert expires_at - created_at == timedelta(minutes=10)
    assert shown == {
        "user_code": started["user_code"],
        "client_name": "Ada's TV ❤️",
        "rights": ["spotify:read", "account:read"],
        "ip": "127.0.0.1",
    }
    assert approve(ada, started).status_code == 204
    response = poll(device, started)

    assert response.status_code == 200
    token = response.json["access_token"]
    assert is_well_formed(token)
    assert response.json == {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": 90 * 86_400,
        "scope": "spotify:read account:read",
    }
    with app.app_context(), reading() as db:
        [row] = db.scalars(sa.select(PersonalAccessToken))
    assert row.token_hash == hash_token(SETTINGS["SECRET_KEY"], token)
    assert row.expires_at - row.created_at == timedelta(days=90)
    assert issued(app) == [("ada", "Ada's TV ❤️", "spotify:read account:read")]


def test_user_code_has_eight_letters_without_vowels_and_may_be_typed_in_any_way(
    device: FlaskClient, ada: FlaskClient
) -> None:
    started = start(device)
    code: str = started["user_code"]
    letters = code.replace("-", "")
    assert (len(letters), code[4], set(letters) <= set(USER_CODE_LETTERS)) == (8, "-", True)
    assert not set(USER_CODE_LETTERS) & set("AEIOUY")

    for typed in (code, code.lower(), letters, letters.lower(), f" {letters[:4]} {letters[4:]} "):
        assert ada.get(f"/api/user/devices/{typed}").json["user_code"] == code, typed


def test_unknown_and_malformed_codes_are_not_found(ada: FlaskClient) -> None:
    body = {"decision": "approve", "current_password": PASSWORD}
    for typed in ("BCDF-GHJ", "BCDF-GHJKL", "AEIO-UYAE", "BCDF_GHJK", "x", "%00", "BCDF-GHJK"):
        path = f"/api/user/devices/{typed}"
        for response in (ada.get(path), ada.post(path, json=body)):
            assert (response.status_code, slug(response)) == (404, "not-found"), typed


# --- one decision, one token ---------------------------------------------------------------------------


def test_device_is_denied(device: FlaskClient, ada: FlaskClient, app: Flask) -> None:
    started = start(device)

    assert deny(ada, started).status_code == 204

    assert oauth_error(poll(device, started)) == "access_denied"
    assert oauth_error(poll(device, started)) == "access_denied"
    assert issued(app) == []


@pytest.mark.parametrize("first", [approve, deny])
@pytest.mark.parametrize("second", [approve, deny])
def test_decision_is_final(
    device: FlaskClient, ada: FlaskClient, first: Callable[..., object], second: Callable[..., object]
) -> None:
    started = start(device)
    first(ada, started)

    again = second(ada, started)

    assert slug(again) == "not-found"  # type: ignore[arg-type]
    assert slug(ada.get(device_path(started))) == "not-found"
    approved = poll(device, started).status_code == 200
    assert approved is (first is approve)


def test_decision_about_an_authorization_that_was_found_earlier_is_final(
    device: FlaskClient, ada: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both requests find the pending authorization, and then decide one after the other."""
    started = start(device)
    tab = another_tab(ada)
    verify = app.extensions["backline"].authenticator.confirm_password

    def deny_meanwhile(*arguments: object) -> None:
        assert deny(tab, started).status_code == 204
        verify(*arguments)

    monkeypatch.setattr(app.extensions["backline"].authenticator, "confirm_password", deny_meanwhile)

    assert slug(approve(ada, started)) == "not-found"
    assert oauth_error(poll(device, started)) == "access_denied"


def test_token_is_issued_once(device: FlaskClient, ada: FlaskClient, app: Flask) -> None:
    started = start(device)
    approve(ada, started)
    barrier = threading.Barrier(12)

    def poll_together(_: int) -> int:
        barrier.wait()
        return poll(device_client(app), started).status_code

    with ThreadPoolExecutor(12) as pool:
        statuses = sorted(pool.map(poll_together, range(12)))

    assert statuses == [200, *[400] * 11]
    assert len(issued(app)) == 1
    assert oauth_error(poll(device, started)) == "invalid_grant"


def test_failure_after_the_code_is_used_up_issues_nothing(
    device: FlaskClient, ada: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(device)
    approve(ada, started)
    with monkeypatch.context() as patched:
        tokens = app.extensions["backline"].personal_access_tokens
        patched.setattr(tokens, "create", _fail_like_a_database)
        response = poll(device, started)

    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert oauth_error(poll(device, started)) == "invalid_grant"
    assert issued(app) == []


def test_database_outage_does_not_use_up_the_code(
    device: FlaskClient, ada: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(device)
    approve(ada, started)
    with monkeypatch.context() as patched:
        patched.setattr(flow, "list_tokens", _fail_like_a_database)
        response = poll(device, started)

    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert poll(device, started).status_code == 200


def _fail_like_a_database(*_: object, **__: object) -> None:
    raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("gone away"))


# --- who may decide -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [approve, deny])
def test_only_the_first_person_who_looks_a_code_up_may_decide(
    device: FlaskClient, ada: FlaskClient, eve: FlaskClient, app: Flask, attack: Callable[..., object]
) -> None:
    """The takeover of CVE-2026-45337: another signed-in person decided a code that they had only seen."""
    started = start(device)
    assert ada.get(device_path(started)).status_code == 200

    assert slug(attack(eve, started)) == "not-found"  # type: ignore[arg-type]
    assert slug(eve.get(device_path(started))) == "not-found"
    assert oauth_error(poll(device, started)) == "authorization_pending"
    assert approve(ada, started).status_code == 204

    assert slug(attack(eve, started)) == "not-found"  # type: ignore[arg-type]
    assert poll(device, started).status_code == 200
    assert issued(app) == [("ada", "my-cli", "spotify:read")]


def test_of_people_who_approve_at_the_same_time_one_wins(
    device: FlaskClient, ada: FlaskClient, eve: FlaskClient, app: Flask
) -> None:
    for _ in range(5):
        started = start(device)
        people = [("ada", another_tab(ada)), ("eve", another_tab(eve))] * 3
        barrier = threading.Barrier(len(people))

        def approve_together(
            person: tuple[str, FlaskClient],
            barrier: threading.Barrier = barrier,
            code: dict[str, str] = started,
        ) -> tuple[str, int]:
            barrier.wait()
            return person[0], approve(person[1], code).status_code

        with ThreadPoolExecutor(len(people)) as pool:
            results = list(pool.map(approve_together, people))
        before = len(issued(app))
        assert poll(device, started).status_code == 200

        [winner] = [name for name, status in results if status == 204]
        assert {status for _, status in results} == {204, 404}
        assert [owner for owner, _, _ in issued(app)[before:]] == [winner]


def test_person_who_looks_a_code_up_at_the_same_time_as_another_does_not_share_it(
    device: FlaskClient, ada: FlaskClient, eve: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eve reads the authorization before, and claims it after Ada has."""
    started = start(device)

    def claim_second(*arguments: object) -> bool:
        monkeypatch.setattr("app.auth.devices.store.compare_and_set", compare_and_set)
        assert ada.get(device_path(started)).status_code == 200
        return compare_and_set(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("app.auth.devices.store.compare_and_set", claim_second)

    assert eve.get(device_path(started)).status_code == 404
    assert approve(ada, started).status_code == 204


def test_approving_needs_what_creating_a_token_needs(
    device: FlaskClient, ada: FlaskClient, app: Flask
) -> None:
    started = start(device)
    for body, expected in (
        ({"decision": "approve"}, (403, "fresh-sign-in-required")),
        ({"decision": "approve", "current_password": "not the password"}, (401, "invalid-credentials")),
        ({"decision": "maybe", "current_password": PASSWORD}, (422, "validation-error")),
        ({"current_password": PASSWORD}, (422, "validation-error")),
    ):
        response = ada.post(device_path(started), json=body)
        assert (response.status_code, slug(response)) == expected, body
        age_polls(app, 60)
        assert oauth_error(poll(device, started)) == "authorization_pending", body

    assert approve(ada, started).status_code == 204


def test_denying_needs_no_password(device: FlaskClient, ada: FlaskClient, app: Flask) -> None:
    for key in app.extensions["backline"].redis.keys("session:*"):
        stored_sessions.change(app, key, signed_in_at=0)

    assert deny(ada, start(device)).status_code == 204


def test_account_with_20_tokens_approves_no_device(device: FlaskClient, ada: FlaskClient, app: Flask) -> None:
    for _ in range(MAX_TOKENS - 1):
        create_token(ada)
    first, second = start(device), start(device)
    assert approve(ada, first).status_code == 204
    create_token(ada)

    assert slug(approve(ada, second)) == "too-many-tokens"
    assert oauth_error(poll(device, second)) == "authorization_pending"
    assert oauth_error(poll(device, first)) == "access_denied"
    assert len(issued(app)) == MAX_TOKENS


# --- between the approval and the poll ---------------------------------------------------------------------


def change_password(ada: FlaskClient, mailbox: Mailbox) -> None:
    changed = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
    assert ada.put("/api/user/password", json=changed).status_code == 204


def reset_password(ada: FlaskClient, mailbox: Mailbox) -> None:
    assert ada.post("/api/password-reset", json={"email": "ada@example.com"}).status_code == 202
    token = token_in(mailbox.wait_for("ada@example.com", RESET))
    new = {"token": token, "password": "another sentence, and longer"}
    assert ada.application.test_client().put("/api/password-reset", json=new).status_code == 204


def end_sessions_elsewhere(ada: FlaskClient, mailbox: Mailbox) -> None:
    login(laptop := ada.application.test_client(), "ada")
    assert laptop.delete("/api/user/sessions", json={"current_password": PASSWORD}).status_code == 204


def end_other_sessions(ada: FlaskClient, mailbox: Mailbox) -> None:
    assert ada.delete("/api/user/sessions", json={"current_password": PASSWORD}).status_code == 204


def delete_account(ada: FlaskClient, mailbox: Mailbox) -> None:
    assert ada.delete("/api/user", json={"password": PASSWORD}).status_code == 204


def disable_account(ada: FlaskClient, mailbox: Mailbox) -> None:
    with ada.application.app_context(), writing() as db:
        user = db.scalars(sa.select(User).where(User.username == "ada")).one()
        user.disabled_at = user.created_at
        announce(db, users=[user.id])


@pytest.mark.parametrize(
    "change",
    [
        change_password,
        reset_password,
        end_sessions_elsewhere,
        end_other_sessions,
        delete_account,
        disable_account,
    ],
)
def test_what_ends_tokens_also_ends_an_approval(
    mailbox: Mailbox, device: FlaskClient, ada: FlaskClient, app: Flask, change: Change
) -> None:
    started = start(device)
    assert approve(ada, started).status_code == 204

    change(ada, mailbox)

    assert oauth_error(poll(device, started)) == "access_denied"
    assert issued(app) == []


def test_password_change_during_the_poll_issues_nothing(
    device: FlaskClient, ada: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(device)
    approve(ada, started)

    def change_meanwhile(*_: object) -> None:
        changed = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
        assert another_tab(ada).put("/api/user/password", json=changed).status_code == 204

    monkeypatch.setattr(flow, "_require_room", change_meanwhile)

    assert oauth_error(poll(device, started)) == "access_denied"
    assert issued(app) == []


def test_signing_out_after_approving_keeps_the_approval(
    device: FlaskClient, ada: FlaskClient, redis_url: str
) -> None:
    """As it keeps tokens: people approve a device in a browser that is not theirs, and sign out."""
    if is_cluster(redis_url):
        pytest.skip("no replica confirms the sign-out, so the account gets a new epoch")
    started = start(device)
    approve(ada, started)
    assert ada.post("/api/logout").status_code == 204

    assert poll(device, started).status_code == 200


# --- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approved", [False, True])
def test_codes_expire_after_ten_minutes(
    device: FlaskClient, ada: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch, approved: bool
) -> None:
    started = start(device)
    if approved:
        approve(ada, started)
    later = utc_now() + timedelta(minutes=10)
    monkeypatch.setattr("app.auth.devices.store.utc_now", lambda: later)

    assert oauth_error(poll(device, started)) == "expired_token"
    assert slug(ada.get(device_path(started))) == "not-found"
    assert slug(approve(ada, started)) == "not-found"
    assert issued(app) == []


def test_redis_keeps_no_code_for_longer_than_20_minutes(
    device: FlaskClient, ada: FlaskClient, app: Flask
) -> None:
    started = start(device)
    poll(device, started)
    ada.get(device_path(started))
    client: redis.Redis = app.extensions["backline"].redis

    ttls = sorted(client.ttl(key) for key in client.keys("device*"))

    assert [round(ttl / 60) for ttl in ttls] == [10, 20, 20]


@pytest.fixture
def _long_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interval and its increase 500 s instead of 5 s, because this machine may be slow."""
    assert (store.INTERVAL_SECONDS, store.SLOW_DOWN_SECONDS) == (5, 5)
    for name in ("INTERVAL_SECONDS", "SLOW_DOWN_SECONDS"):
        monkeypatch.setattr(store, name, 500)


@pytest.mark.usefixtures("_long_interval")
def test_device_that_polls_too_often_has_to_slow_down(device: FlaskClient, app: Flask) -> None:
    started = start(device)
    assert oauth_error(poll(device, started)) == "authorization_pending"
    assert oauth_error(poll(device, started)) == "slow_down"
    age_polls(app, 500)  # the interval is 1000 s by now
    assert oauth_error(poll(device, started)) == "slow_down"
    age_polls(app, 1000)  # 1500 s
    assert oauth_error(poll(device, started)) == "slow_down"
    age_polls(app, 2000)
    assert oauth_error(poll(device, started)) == "authorization_pending"
    age_polls(app, 1500)
    assert oauth_error(poll(device, started)) == "slow_down"


@pytest.mark.usefixtures("_long_interval")
def test_device_that_keeps_to_the_interval_is_not_slowed_down(device: FlaskClient, app: Flask) -> None:
    started = start(device)
    for _ in range(3):
        assert oauth_error(poll(device, started)) == "authorization_pending"
        age_polls(app, 500)
    age_polls(app, -3600)  # Redis' clock was set back
    assert oauth_error(poll(device, started)) == "authorization_pending"


def test_decision_is_reported_whenever_the_device_polls(device: FlaskClient, ada: FlaskClient) -> None:
    """`slow_down` means that the authorization is still pending (RFC 8628 section 3.5)."""
    started = start(device)
    poll(device, started)
    approve(ada, started)

    assert poll(device, started).status_code == 200


# --- limits ------------------------------------------------------------------------------------------------


def test_person_may_look_up_a_limited_number_of_codes(ada: FlaskClient, eve: FlaskClient) -> None:
    requests = [ada.get, lambda path: ada.post(path, json={"decision": "deny"})]
    statuses = [requests[number % 2]("/api/user/devices/BCDF-GHJK").status_code for number in range(61)]

    assert statuses == [*[404] * LOOKUPS_PER_HOUR, 429]
    assert eve.get("/api/user/devices/BCDF-GHJK").status_code == 404


def test_address_may_look_up_a_limited_number_of_codes(
    ada: FlaskClient, device: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone may have many accounts."""
    monkeypatch.setattr(flow, "LOOKUPS_PER_HOUR_AND_ADDRESS", 2)
    assert LOOKUPS_PER_HOUR_AND_ADDRESS == 600
    for number in range(3):
        register(person := app.test_client(), f"mallory{number}")
        found = person.get("/api/user/devices/BCDF-GHJK")
        assert found.status_code == (404 if number < 2 else 429)
    assert found.headers["Retry-After"]

    ada.environ_base["REMOTE_ADDR"] = "203.0.113.7"
    assert ada.get(device_path(start(device))).status_code == 200


def test_address_may_start_a_limited_number_of_authorizations(
    device: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STARTS_PER_HOUR", 2)
    assert STARTS_PER_HOUR == 100
    start(device)
    start(device)

    form = {"client_name": "my-cli", "scope": "spotify:read"}
    rejected = device.post("/api/oauth/device_authorization", data=form)

    assert (rejected.status_code, rejected.json["error"]) == (429, "temporarily_unavailable")
    assert int(rejected.headers["Retry-After"]) > 3000
    device.environ_base["REMOTE_ADDR"] = "203.0.113.7"
    start(device)


# --- what Redis contains -----------------------------------------------------------------------------------


def test_redis_contains_neither_code_and_nothing_that_can_be_read(
    device: FlaskClient, ada: FlaskClient, app: Flask
) -> None:
    started = start(device, client_name="a name to look for")
    approve(ada, started)
    another = start(device, client_name="a name to look for")
    client: redis.Redis = app.extensions["backline"].redis
    stored = b"".join(key + client.dump(key) for key in client.keys("*"))

    for secret in (started["device_code"], another["user_code"], "a name to look for", "spotify:read"):
        assert secret.encode() not in stored
        assert secret.replace("-", "").encode() not in stored


def test_hash_of_the_user_code_depends_on_the_secret_key(device: FlaskClient, make_app: MakeApp) -> None:
    """Otherwise, whoever reads Redis could hash all codes and compare."""
    client: redis.Redis = device.application.extensions["backline"].redis
    started = start(device)
    [pointer] = client.keys("device-user-code:*")
    other = make_app(SECRET_KEY="another secret key for tests only")
    person = other.test_client()
    register(person, "grace")
    client.delete(pointer)
    looked_up: list[str] = []
    get = other.extensions["backline"].redis.get

    def record(key: str) -> object:
        looked_up.append(key)
        return get(key)

    with patch.object(other.extensions["backline"].redis, "get", record):
        person.get(device_path(started))

    assert [key.startswith("device-user-code:") for key in looked_up] == [True]
    assert pointer.decode() not in looked_up


def test_approval_cannot_be_copied_to_another_code_in_redis(
    device: FlaskClient, ada: FlaskClient, app: Flask
) -> None:
    """Write access to Redis must not be enough to obtain a token."""
    client: redis.Redis = app.extensions["backline"].redis
    attackers = start(device)
    [own] = client.keys("device-authorization:*")
    approve(ada, start(device))
    [approved] = set(client.keys("device-authorization:*")) - {own}

    client.restore(own, 0, client.dump(approved), replace=True)
    assert oauth_error(poll(device, attackers)) == "invalid_grant"
    client.set(own, b"\x01nonsense")
    assert oauth_error(poll(device, attackers)) == "invalid_grant"
    for pointer in client.keys("device-user-code:*"):
        client.set(pointer, own)
    assert ada.get(device_path(attackers)).status_code == 404
