"""Personal access tokens: creating, listing, and everything that ends them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.auth import personal_access_tokens
from app.auth.personal_access_tokens import MAX_TOKENS, CreatedToken
from app.errors import NotSignedIn, TooManyTokens
from app.infra.bearer_token import hash_token, is_well_formed
from app.infra.database import reading, writing
from app.models import PersonalAccessToken, Right, User
from tests.conftest import SETTINGS
from tests.helpers.factories import advance_time, run_maintenance
from tests.helpers.flows import PASSWORD, create_token, login, register
from tests.helpers.mail_server import RESET, Mailbox, token_in
from tests.helpers.sandbox_client import SandboxClient

DAYS = 24 * 3600


@pytest.fixture
def ada(client: FlaskClient) -> FlaskClient:
    register(client, "ada")
    return client


def rows(app: Flask) -> list[PersonalAccessToken]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(PersonalAccessToken).order_by(PersonalAccessToken.id)))


def owner(app: Flask) -> User:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(User)).one()


def create(app: Flask, *, epoch: int | None = None, days: int = 90, name: str = "a script") -> CreatedToken:
    user = owner(app)
    with app.app_context():
        created: CreatedToken = app.extensions["backline"].personal_access_tokens.create(
            user.id,
            user.session_epoch if epoch is None else epoch,
            name=name,
            rights=[Right.ACCOUNT_READ, Right.SPOTIFY_READ],
            lifetime=timedelta(days=days),
        )
    return created


# --- creating ------------------------------------------------------------------------------------


def test_only_the_hash_of_a_new_token_is_stored(ada: FlaskClient, app: Flask) -> None:
    created = create(app, name="Adas Sicherung ♫")

    [row] = rows(app)
    assert is_well_formed(created.token)
    assert row.token_hash == hash_token(SETTINGS["SECRET_KEY"], created.token)
    assert (row.user_id, row.session_epoch) == (owner(app).id, owner(app).session_epoch)
    assert (row.name, row.rights) == ("Adas Sicherung ♫", "spotify:read account:read")
    assert row.expires_at - row.created_at == timedelta(days=90)
    assert abs(row.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (row.last_used_at, row.last_used_ip) == (None, None)


def test_account_has_at_most_20_tokens_even_if_they_are_created_at_once(ada: FlaskClient, app: Flask) -> None:
    for _ in range(MAX_TOKENS - 2):
        create(app)
    barrier = threading.Barrier(4)

    def one_more(_: int) -> bool:
        barrier.wait()
        try:
            create(app)
        except TooManyTokens:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(one_more, range(4))) == [False, False, True, True]
    assert len(rows(app)) == MAX_TOKENS


def test_expired_tokens_make_room(ada: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    for _ in range(MAX_TOKENS):
        create(app, days=1)
    with pytest.raises(TooManyTokens):
        create(app)

    advance_time(app, sandbox, 1 * DAYS + 1)

    create(app)
    assert len(rows(app)) == 1


def test_sessions_that_have_ended_create_no_token(ada: FlaskClient, app: Flask) -> None:
    epoch = owner(app).session_epoch
    with app.app_context(), writing() as db:
        db.scalars(sa.select(User)).one().end_sessions()
    with pytest.raises(NotSignedIn):
        create(app, epoch=epoch)
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(disabled_at=datetime.now(UTC)))
    with pytest.raises(NotSignedIn):
        create(app)
    with pytest.raises(NotSignedIn), app.app_context():
        app.extensions["backline"].personal_access_tokens.create(
            0, 0, name="x", rights=[Right.ACCOUNT_READ], lifetime=timedelta(days=1)
        )
    assert rows(app) == []


@pytest.mark.slow
def test_owner_is_told_by_email_without_the_name(ada: FlaskClient, app: Flask, mailbox: Mailbox) -> None:
    create(app, name="an unverified address gets no email")
    ada.post("/api/password-reset", json={"email": "ada@example.com"})
    verified = {"token": token_in(mailbox.wait_for("ada@example.com", RESET)), "password": PASSWORD}
    assert ada.put("/api/password-reset", json=verified).status_code == 204
    subject = "A personal access token was created"

    created = create(app, name="win-1000-eur.example")

    text = " ".join(mailbox.wait_for("ada@example.com", subject).get_content().split())
    end = created.row.expires_at
    assert f"Until {end:%B} {end.day}, {end.year}, any program with this token can:" in text
    assert "- read your Spotify data - see your account" in text
    assert "win-1000-eur" not in text
    assert [mail["Subject"] for mail in mailbox.mails].count(subject) == 1


# --- listing and revoking ---------------------------------------------------------------------------


def test_list_has_the_live_tokens_of_one_account(
    ada: FlaskClient, app: Flask, new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    create(app, days=1, name="expired")
    advance_time(app, sandbox, 1 * DAYS)
    user = owner(app)
    first, second = create(app, name="first"), create(app, name="second")
    register(bob := new_client(), "bob")
    create_token(bob)

    with app.app_context():
        listed = personal_access_tokens.list_tokens(user.id, user.session_epoch)
        assert [token.id for token in listed] == [second.row.id, first.row.id]
        assert personal_access_tokens.list_tokens(user.id, user.session_epoch ^ 1) == []


def test_only_the_owner_revokes_a_token(
    ada: FlaskClient, app: Flask, new_client: Callable[[], FlaskClient]
) -> None:
    user, created = owner(app), create(app)
    bob = register(new_client(), "bob")

    with app.app_context():
        assert not personal_access_tokens.revoke(bob["id"], created.row.id)
        assert len(rows(app)) == 1
        assert personal_access_tokens.revoke(user.id, created.row.id)
        assert not personal_access_tokens.revoke(user.id, created.row.id)
    assert rows(app) == []


# --- what ends them -------------------------------------------------------------------------------


def change_password(client: FlaskClient) -> None:
    change = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
    assert client.put("/api/user/password", json=change).status_code == 204


def disable(client: FlaskClient) -> None:
    client.application.test_cli_runner().invoke(args=["users", "disable", "ada"])
    client.application.test_cli_runner().invoke(args=["users", "enable", "ada"])


def end_sessions(client: FlaskClient) -> None:
    client.application.test_cli_runner().invoke(args=["users", "end-sessions", "ada"])


def delete(client: FlaskClient) -> None:
    assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204


@pytest.mark.parametrize("end", [change_password, disable, end_sessions, delete])
def test_tokens_end_with_the_sessions(
    ada: FlaskClient, app: Flask, new_client: Callable[[], FlaskClient], end: Callable[[FlaskClient], Any]
) -> None:
    create(app)
    register(bob := new_client(), "bob")
    create_token(bob)

    end(ada)

    assert [row.user_id for row in rows(app)] == [bob.get("/api/user").json["id"]]


def test_tokens_outlive_signing_out(ada: FlaskClient, app: Flask) -> None:
    create(app)
    login(ada, "ada")
    assert ada.post("/api/logout").status_code == 204

    assert len(rows(app)) == 1


def test_maintenance_deletes_expired_tokens(ada: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    create(app, days=1)
    create(app, days=2)
    create(app, days=365)
    advance_time(app, sandbox, 1 * DAYS)

    assert run_maintenance(app)["prune_personal_access_tokens"] == 1
    assert len(rows(app)) == 2


def test_new_token_changes_its_owner(ada: FlaskClient, app: Flask) -> None:
    """So it conflicts with a password reset on another node of a Galera cluster, which sees no locks."""
    before = owner(app).updated_at
    create(app)

    assert owner(app).updated_at > before
