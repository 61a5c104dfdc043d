"""The routes for personal access tokens."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.bearer_token import is_well_formed
from app.infra.database import writing
from app.models import Right, User
from app.models.user import UNUSABLE_HASH
from tests.helpers.flows import PASSWORD, another_tab, create_token, login, register, slug
from tests.helpers.mail_server import RESET, Mailbox, token_in

pytestmark = pytest.mark.sqlite_only

NEW = {"name": "backup script", "rights": ["account:read"], "current_password": PASSWORD}
LISTED = {"id", "name", "rights", "expires_at", "created_at", "last_used_at", "last_used_ip"}


@pytest.fixture
def ada(client: FlaskClient) -> FlaskClient:
    register(client, "ada")
    return client


def create(client: FlaskClient, **members: object) -> TestResponse:
    return client.post("/api/user/tokens", json=NEW | members)


def items(client: FlaskClient) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = client.get("/api/user/tokens").json["items"]
    return listed


def status(app: Flask, token: str) -> int:
    sent = {"Authorization": f"Bearer {token}"}
    return app.test_client().get("/api/session", headers=sent).status_code


def remove_password(app: Flask) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(password_hash=UNUSABLE_HASH))


def age_sign_in(client: FlaskClient, seconds: float) -> None:
    with client.session_transaction("/api/session") as session:
        session["signed_in_at"] -= seconds


def test_token_is_shown_once_and_works(ada: FlaskClient, app: Flask) -> None:
    response = create(ada, name="  backup script ", rights=["account:read", "spotify:read", "account:read"])

    assert response.status_code == 201
    created = response.json
    token = created.pop("token")
    assert is_well_formed(token)
    assert created.keys() == LISTED
    assert (created["name"], created["rights"]) == ("backup script", ["spotify:read", "account:read"])
    lifetime = datetime.fromisoformat(created["expires_at"]) - datetime.fromisoformat(created["created_at"])
    assert lifetime == timedelta(days=90)
    assert (created["last_used_at"], created["last_used_ip"]) == (None, None)
    assert response.headers["Location"] == f"/api/user/tokens/{created['id']}"
    assert items(ada) == [created]

    sent = {"Authorization": f"Bearer {token}"}
    assert app.test_client().get("/api/user", headers=sent).json["username"] == "ada"

    [used] = items(ada)
    assert used["last_used_ip"] == "127.0.0.1"
    assert used["last_used_at"] >= created["created_at"]
    assert ada.get("/api/user/export").json["tokens"] == [used]


def test_lifetime_is_chosen(ada: FlaskClient) -> None:
    for days in (1, 365):
        created = create(ada, expires_in_days=days).json
        expires_at = datetime.fromisoformat(created["expires_at"])
        assert expires_at - datetime.fromisoformat(created["created_at"]) == timedelta(days=days)


def test_invalid_member_is_named(ada: FlaskClient) -> None:
    invalid: list[tuple[str, object]] = [
        ("name", ""),
        ("name", "   "),
        ("name", "x" * 101),
        ("name", "two\nlines"),
        ("name", "a\u202eb"),
        ("name", "\u3164"),  # Hangul filler
        ("name", "\u2800 \ufe0f"),  # blank Braille pattern, variation selector
        ("name", None),
        ("name", 7),
        ("rights", []),
        ("rights", "account:read"),
        ("rights", None),
        ("rights", ["account:write"]),
        ("rights", ["account:read", "*"]),
        ("rights", [["account:read"]]),
        ("rights", [None]),
        ("expires_in_days", 0),
        ("expires_in_days", 366),
        ("expires_in_days", -1),
        ("expires_in_days", 10**30),
        ("expires_in_days", 1.0),
        ("expires_in_days", "30"),
        ("expires_in_days", True),
        ("expires_in_days", None),
        ("current_password", 7),
    ]
    for field, value in invalid:
        response = create(ada, **{field: value})
        assert (response.status_code, slug(response)) == (422, "validation-error"), (field, value)
        assert list(response.json["errors"]) == [field]
    assert items(ada) == []


@pytest.mark.requirement("H4")
def test_account_has_at_most_20(ada: FlaskClient) -> None:
    for _ in range(20):
        create_token(ada)

    response = create(ada)

    assert (response.status_code, slug(response)) == (409, "too-many-tokens")
    assert ada.delete(f"/api/user/tokens/{items(ada)[0]['id']}").status_code == 204
    assert create(ada).status_code == 201


def test_creating_is_limited(ada: FlaskClient) -> None:
    for _ in range(60):
        response = create(ada)
        if response.status_code == 201:
            ada.delete(response.headers["Location"])

    response = create(ada)

    assert (response.status_code, slug(response)) == (429, "too-many-attempts")


# --- confirming ---------------------------------------------------------------------------------------


def test_password_is_needed_even_after_a_fresh_sign_in(ada: FlaskClient) -> None:
    without = {name: value for name, value in NEW.items() if name != "current_password"}

    assert slug(ada.post("/api/user/tokens", json=without)) == "fresh-sign-in-required"
    assert slug(create(ada, current_password="wrong, but long enough")) == "invalid-credentials"
    age_sign_in(ada, 3600)
    assert create(ada).status_code == 201


def test_account_without_a_password_needs_a_fresh_sign_in(ada: FlaskClient, app: Flask) -> None:
    remove_password(app)
    without = {name: value for name, value in NEW.items() if name != "current_password"}

    assert ada.post("/api/user/tokens", json=without).status_code == 201
    assert slug(create(ada)) == "invalid-credentials"
    age_sign_in(ada, 901)
    assert slug(ada.post("/api/user/tokens", json=without)) == "fresh-sign-in-required"


def test_guesses_of_the_password_are_throttled(ada: FlaskClient) -> None:
    statuses = {create(ada, current_password=f"guess {number}").status_code for number in range(12)}

    assert statuses == {401, 429}


# --- revoking -----------------------------------------------------------------------------------------


def test_revoked_token_is_rejected_at_once_and_others_are_not(ada: FlaskClient, app: Flask) -> None:
    first, second = create(ada).json, create(ada).json
    for _ in range(3):
        assert [status(app, each["token"]) for each in (first, second)] == [200, 200]

    assert ada.delete(f"/api/user/tokens/{first['id']}").status_code == 204

    assert [status(app, each["token"]) for each in (first, second)] == [401, 200]
    assert [item["id"] for item in items(ada)] == [second["id"]]
    assert ada.delete(f"/api/user/tokens/{first['id']}").status_code == 204


def test_unknown_token_is_revoked_already_and_a_malformed_id_not_found(ada: FlaskClient) -> None:
    for token_id in ("0", "2147483647", "2147483648", "9" * 40):
        assert ada.delete(f"/api/user/tokens/{token_id}").status_code == 204, token_id
    for token_id in ("x", "-1", "1.0", "0x1"):
        assert slug(ada.delete(f"/api/user/tokens/{token_id}")) == "not-found", token_id


def test_tokens_of_other_people_are_invisible(
    ada: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    adas = create(ada).json
    register(bob := new_client(), "bob")

    assert items(bob) == []
    assert bob.delete(f"/api/user/tokens/{adas['id']}").status_code == 204

    assert len(items(ada)) == 1
    assert status(app, adas["token"]) == 200


# --- what ends all tokens -----------------------------------------------------------------------------


def test_ending_all_sessions_revokes_all_tokens(
    ada: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    token = create_token(ada)
    login(phone := new_client(), "ada")
    age_sign_in(ada, 600)

    assert ada.delete("/api/user/sessions").status_code == 204

    assert status(app, token) == 401
    assert phone.get("/api/user").status_code == 401
    assert ada.get("/api/user").status_code == 200
    assert items(ada) == []
    age_sign_in(ada, 301)  # ending sessions is no sign-in
    assert slug(ada.delete("/api/user/sessions")) == "fresh-sign-in-required"


def test_ending_one_session_revokes_no_token(
    ada: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    token = create_token(ada)
    login(new_client(), "ada")
    [phone] = [item["id"] for item in ada.get("/api/user/sessions").json["items"] if not item["current"]]

    assert ada.delete(f"/api/user/sessions/{phone}").status_code == 204
    assert ada.post("/api/logout").status_code == 204

    assert status(app, token) == 200


def test_password_change_revokes_all_tokens(ada: FlaskClient, app: Flask) -> None:
    token = create_token(ada)
    assert status(app, token) == 200

    change = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
    assert ada.put("/api/user/password", json=change).status_code == 204

    assert status(app, token) == 401
    assert items(ada) == []


@pytest.mark.slow
def test_password_reset_revokes_all_tokens(ada: FlaskClient, app: Flask, mailbox: Mailbox) -> None:
    token = create_token(ada)
    ada.post("/api/password-reset", json={"email": "ada@example.com"})
    reset = {"token": token_in(mailbox.wait_for("ada@example.com", RESET)), "password": PASSWORD}

    assert app.test_client().put("/api/password-reset", json=reset).status_code == 204

    assert status(app, token) == 401


def test_session_that_has_ended_creates_no_token(ada: FlaskClient, app: Flask) -> None:
    """A thief's request was authenticated before the owner ended all sessions, and commits afterwards."""
    thief, tokens = another_tab(ada), app.extensions["backline"].personal_access_tokens
    original = tokens.create

    def create_late(*arguments: Any, **options: Any) -> Any:
        assert ada.delete("/api/user/sessions").status_code == 204
        return original(*arguments, **options)

    tokens.create = create_late
    response = create(thief)

    assert slug(response) == "not-signed-in"
    assert items(ada) == []


def test_disabled_account_has_no_tokens(ada: FlaskClient, app: Flask) -> None:
    token = create_token(ada, Right.ACCOUNT_READ)
    assert status(app, token) == 200

    app.test_cli_runner().invoke(args=["users", "disable", "ada"])
    assert status(app, token) == 401
    app.test_cli_runner().invoke(args=["users", "enable", "ada"])
    assert status(app, token) == 401
