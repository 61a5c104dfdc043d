"""`flask apps`, and the rotation of the keys that encrypt client secrets."""

import base64
import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.infra.encryption import TokenCipher
from app.infra.http_client import HttpResponse
from app.models import AppState, SpotifyApp
from app.spotify.applications.encryption import decrypt_secret, secret_context
from app.spotify.applications.lookup import Applications
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.tokens.key_rotation import RotationProgress, keys_in_use, rotate_keys
from tests.helpers.flows import register
from tests.helpers.own_applications import create_own_applications
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [pytest.mark.settings(SPOTIFY_APPS="both"), pytest.mark.sqlite_only]


def apps(app: Flask, *arguments: str, secret: str = "") -> Result:
    return app.test_cli_runner().invoke(args=["apps", *arguments], input=f"{secret}\n")


def test_operator_adds_lists_and_removes_an_application(
    client: FlaskClient, sandbox: SandboxClient, app: Flask
) -> None:
    user = register(client, "ada")
    created = sandbox.create_applications()[0]
    client_id, secret = created["client_id"], created["client_secret"]

    wrong = apps(app, "add", "ada", client_id, secret="wrong")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Spotify rejects this application\nclient_secret: Spotify does not")
    added = apps(app, "add", "ada", client_id, secret=secret)
    assert added.stdout == f"User {user['id']} (ada) now connects with the application {client_id}.\n"
    assert secret not in added.output
    assert apps(app, "list").stdout.split() == [str(user["id"]), "ada", client_id, "secret", "active"]
    with app.app_context(), writing() as db:
        db.execute(sa.update(SpotifyApp).values(state=AppState.REFUSED))
    doctor = app.test_cli_runner().invoke(args=["doctor"])
    assert "own Spotify applications: 1, of which 1 refused" in doctor.stdout
    page = client.get("/operator", environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
    assert "Own Spotify applications that are refused: 1" in page.text
    assert "flask apps list --paused" in page.text

    assert apps(app, "add", "ada@example.com", client_id, "--public").exit_code == 0
    assert client.get("/api/spotify/app").json["has_secret"] is False
    assert apps(app, "remove", str(user["id"])).stdout.startswith("Removed the application of user")
    assert apps(app, "remove", "ada").stdout.endswith("has no application of their own.\n")
    assert apps(app, "list").stdout == ""


def test_application_of_a_disabled_account_stays_as_it_is(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    app.test_cli_runner().invoke(args=["users", "disable", "ada"])

    for arguments in (("add", "ada", "anyClientId", "--public"), ("remove", "ada")):
        result = apps(app, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "(ada) is disabled. `flask users enable`" in result.stderr


def test_operator_sees_which_applications_are_paused_and_why(app: Flask, sandbox: SandboxClient) -> None:
    created = create_own_applications(app, sandbox, 3)
    working, refused, limited = (each["client_id"] for each in created)
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    paused = {"state": AppState.REFUSED, "failing_since": now, "paused_until": now + timedelta(hours=1)}
    with app.app_context(), writing() as db:
        db.execute(sa.update(SpotifyApp).where(SpotifyApp.client_id == refused).values(paused))
    quota = HttpResponse(429, {"retry-after": "3600"}, b'{"error": {"reason": "QUOTA_EXCEEDED"}}')
    limits = ClientLimitsRegistry(app.extensions["backline"].redis, app.extensions["backline"].config)
    limits.of(limited).rate_limiter.record_429("me", quota)

    lines = apps(app, "list", "--paused").stdout.splitlines()
    assert [line.split()[2] for line in lines] == [refused, limited]
    assert lines[0].endswith(" refused since 2026-11-26T12:00:00Z until 2026-11-26T13:00:00Z")
    assert re.search(r" active, Web API: rate limited for 3[456]\d\d s$", lines[1])
    assert [line.split()[2] for line in apps(app, "list").stdout.splitlines()] == [working, refused, limited]


def test_client_secrets_move_to_the_newest_key(
    client: FlaskClient, sandbox: SandboxClient, app: Flask
) -> None:
    register(client, "ada")
    created = sandbox.create_applications()[0]
    assert apps(app, "add", "ada", created["client_id"], secret=created["client_secret"]).exit_code == 0
    old = app.extensions["backline"].token_cipher
    new_key = base64.b64encode(bytes([7]) * 32).decode()
    config = app.extensions["backline"].config
    both = TokenCipher([base64.b64decode(new_key), *config.token_encryption_keys])

    with app.app_context():
        assert keys_in_use() == {old.newest_key_id: 1}
        rotated, again = rotate_keys(both, lambda _: None), rotate_keys(both, lambda _: None)
        assert (rotated.total, rotated.reencrypted, rotated.unreadable) == (1, 1, 0)
        assert again.seen == 0
        assert keys_in_use() == {both.newest_key_id: 1}
        only_new = Applications(config, TokenCipher([base64.b64decode(new_key)]))
        own = only_new.of_user(client.get("/api/user").json["id"])
        assert own is not None
        assert own.client_secret == created["client_secret"]
        unreadable = rotate_keys(old, lambda _: None)
        assert (unreadable.reencrypted, unreadable.unreadable) == (0, 1)


def test_client_secret_that_changes_during_the_rotation_is_kept(app: Flask, sandbox: SandboxClient) -> None:
    _, second = create_own_applications(app, sandbox, 2)
    old = app.extensions["backline"].token_cipher
    both = TokenCipher([bytes([7]) * 32, *app.extensions["backline"].config.token_encryption_keys])

    def replace_second(progress: RotationProgress) -> None:
        if progress.seen == 3:  # both grants and the first application
            with writing() as db:
                row = db.get_one(SpotifyApp, second["id"])
                row.client_secret = old.encrypt("new-secret", *secret_context(row.id))

    with app.app_context():
        assert rotate_keys(both, replace_second).seen == 4
        with reading() as db:
            assert decrypt_secret(both, db.get_one(SpotifyApp, second["id"])) == "new-secret"
