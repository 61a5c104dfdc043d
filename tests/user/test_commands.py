"""`flask users`: what it prints, and what it changes."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import reading
from app.models import User
from tests.conftest import MakeApp
from tests.helpers.email_change import ADA, NEW, register_ada, session_epoch
from tests.helpers.flows import PASSWORD, connect, login, register, send_callback, slug
from tests.helpers.mail_server import RESET, VERIFY, Mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient


def users(app: Flask, *arguments: str) -> tuple[int, str, str]:
    result = app.test_cli_runner().invoke(args=["users", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def ada(mailbox: Mailbox, client: FlaskClient) -> FlaskClient:
    """Ada, who is signed in and has verified her address."""
    return register_ada(client, mailbox)


def test_show_prints_an_account_without_secrets(ada: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    connect(ada, sandbox)
    ada.patch("/api/user", json={"email": NEW, "current_password": PASSWORD})
    number = str(ada.get("/api/user").json["id"])

    shown = {called: users(app, "show", called) for called in ("ada", " ADA", "Ada@Example.com", number)}

    assert len(set(shown.values())) == 1
    code, output, _ = shown["ada"]
    rows = {line[:16].strip(): line[16:] for line in output.splitlines()}
    assert (code, rows["id"], rows["username"]) == (0, number, "ada")
    assert (rows["email"], rows["pending email"]) == (f"{ADA} (verified)", NEW)
    assert (rows["disabled"], rows["Spotify"]) == ("no", "mira_t_42 (active)")
    assert "argon2" not in output


COMMANDS: dict[str, list[str]] = {
    "show": [],
    "end-sessions": [],
    "disable": [],
    "enable": [],
    "set-email": [NEW],
}


def test_commands_reject_unknown_and_ambiguous_users(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    user = register(client, "ada")

    for unknown in ("grace", "grace@example.com", "0", "-1", "99999", "9" * 30, "", "x" * 300):
        for command, more in COMMANDS.items():
            code, output, error = users(app, command, "--", unknown, *more)
            assert (code, output) == (1, ""), unknown
            assert "no user" in error

    # Someone may choose the id of another account as their username.
    decoy = f"{user['id']:02}" if user["id"] < 10 else str(user["id"])
    register(new_client(), decoy)
    for command, more in COMMANDS.items():
        code, output, error = users(app, command, decoy, *more)
        assert (code, output) == (1, "")
        assert "email address" in error
    assert client.get("/api/user").json == user


def test_set_email_replaces_the_address(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, new_client: Callable[[], FlaskClient]
) -> None:
    """The user has lost the old mailbox, so links that were sent to it stop working."""
    ada.patch("/api/user", json={"email": "other@example.com", "current_password": PASSWORD})
    undo = token_in(mailbox.wait_for(ADA, "about to change"))
    register(new_client(), "grace")

    assert users(app, "set-email", "ada", "grace@example.com")[0] == 1
    assert users(app, "set-email", "ada", "nonsense")[0] == 1
    code, output, error = users(app, "set-email", "ada", "New@example.com")

    assert (code, error) == (0, "")
    assert NEW in output
    user = ada.get("/api/user").json
    assert (user["email"], user["email_verified"], user["pending_email"]) == (NEW, False, None)
    assert mailbox.wait_for(ADA, "Your email address was changed")
    assert ada.put("/api/email-change", json={"token": undo, "decision": "undo"}).status_code == 400
    token = token_in(mailbox.wait_for("New@example.com", VERIFY))
    assert ada.put("/api/email-verification", json={"token": token}).status_code == 204


@pytest.mark.sqlite_only
@pytest.mark.settings(SPOTIFY_SIGN_IN="true")
def test_set_email_ends_spotify_as_a_way_in(
    ada: FlaskClient, app: Flask, sandbox: SandboxClient, new_client: Callable[[], FlaskClient]
) -> None:
    """A stranger who knew the password may have connected their own account."""

    def sign_in() -> TestResponse:
        visit = (visitor := new_client()).get("/api/spotify/authorize", query_string={"intent": "sign_in"})
        return send_callback(visitor, sandbox.consent(visit.json["authorize_url"]))

    connect(ada, sandbox)
    assert users(app, "set-email", "ada", "Ada@EXAMPLE.com")[0] == 0
    assert sign_in().status_code == 200  # the same address

    assert users(app, "set-email", "ada", NEW)[0] == 0
    assert slug(sign_in()) == "spotify-account-in-use"


def test_set_email_keeps_another_spelling_verified(ada: FlaskClient, mailbox: Mailbox, app: Flask) -> None:
    """It is the same mailbox, so it needs neither a verification nor a notice."""
    wait_for_background_work(app)
    sent = len(mailbox.mails)

    code, output, error = users(app, "set-email", "ada", "Ada@EXAMPLE.com")

    assert (code, error) == (0, "")
    assert f"{ADA} (verified)" in output
    assert ada.get("/api/user").json["email_verified"]
    wait_for_background_work(app)
    assert len(mailbox.mails) == sent
    assert "Ada@example.com" in users(app, "show", "ada")[1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_set_email_reports_that_no_email_was_sent(
    client: FlaskClient, app: Flask, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(client, "ada")
    cut_off = make_app(REDIS_URL="redis://127.0.0.1:1/0")
    # As in production without MAIL_URL.
    monkeypatch.setattr(cut_off.extensions["backline"].mailer, "transport", None)
    code, output, error = users(cut_off, "set-email", "ada", NEW)

    assert (code, f"{NEW} (not verified)" in output) == (0, True)
    assert "MAIL_URL is not set" in error
    assert client.get("/api/user").json["email"] == NEW


def test_end_sessions_signs_the_user_out_everywhere(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    register(client, "ada")
    login(phone := new_client(), "ada")
    epoch = session_epoch(app)

    code, output, _ = users(app, "end-sessions", "ada")

    assert (code, "Ended 2 sessions" in output) == (0, True)
    assert session_epoch(app) != epoch
    assert [each.get("/api/user").status_code for each in (client, phone)] == [401, 401]
    assert login(client, "ada").status_code == 200


@pytest.mark.parametrize(
    ("command", "says"), [("end-sessions", "Ended all sessions"), ("disable", "Disabled user")]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sessions_end_although_redis_is_down(
    client: FlaskClient, make_app: MakeApp, command: str, says: str
) -> None:
    register(client, "ada")

    app = make_app(REDIS_URL="redis://127.0.0.1:1/0")
    code, output, error = users(app, command, "ada")

    assert (code, says in output) == (0, True)
    assert "another minute" in error  # in processes that remember the user's row
    assert client.get("/api/user").status_code == 401


@pytest.mark.requirement("G3")
def test_disabled_account_cannot_be_used_until_enabled(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, new_client: Callable[[], FlaskClient]
) -> None:
    ada.post("/api/password-reset", json={"email": ADA})
    before = token_in(mailbox.wait_for(ADA, RESET))
    change = {"current_password": PASSWORD, "email": NEW}
    assert ada.patch("/api/user", json=change).status_code == 200
    mailed = {
        "/api/email-verification": {"token": token_in(mailbox.wait_for(NEW, VERIFY))},
        "/api/email-change": {
            "token": token_in(mailbox.wait_for(ADA, "about to change")),
            "decision": "undo",
        },
        "/api/password-reset": {"token": before, "password": "another sentence, and longer"},
    }
    wait_for_background_work(app)
    sent, epoch = len(mailbox.mails), session_epoch(app)

    for _ in range(2):
        assert users(app, "disable", "ada")[0] == 0

    assert session_epoch(app) != epoch
    assert ada.get("/api/user").status_code == 401
    wrong, unknown = login(new_client(), "ada"), login(new_client(), "nobody")
    assert (
        (wrong.status_code, slug(wrong))
        == (unknown.status_code, slug(unknown))
        == (401, "invalid-credentials")
    )
    for path, body in mailed.items():
        assert ada.put(path, json=body).status_code == 400, path
    assert ada.post("/api/password-reset", json={"email": ADA}).status_code == 202
    wait_for_background_work(app)
    assert len(mailbox.mails) == sent

    assert users(app, "enable", "ada")[0] == 0
    assert login(ada, "ada").status_code == 200
    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(User.disabled_at)).one() is None
