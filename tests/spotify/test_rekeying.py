"""Changing the key that tokens are sealed with, while they are in use."""

import base64
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.database import db as database
from app.database import reading, writing
from app.models import AccessToken
from app.spotify import rekeying
from app.spotify.rekeying import Moved, rotate_keys
from config import Config
from tests.journeys import connect, register
from tests.sandbox_client import SandboxClient
from tests.test_scheduler import flask

NEW_KEY = base64.b64encode(bytes([7]) * 32).decode()


@pytest.fixture
def connected(new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> list[FlaskClient]:
    """Three people with a link each, sealed with the old key."""
    clients = []
    for person in ("mira_t_42", "jonas.k", "aiko-87"):
        register(client := new_client())
        connect(client, sandbox, person=person)
        clients.append(client)
    return clients


@pytest.fixture
def both_keys(env: dict[str, str]) -> dict[str, str]:
    return {**env, "TOKEN_ENCRYPTION_KEYS": f"{NEW_KEY},{env['TOKEN_ENCRYPTION_KEYS']}"}


def works_with(env: dict[str, str], client: FlaskClient) -> bool:
    """Whether an app with these keys can give this client its token."""
    app = create_app(Config.from_env(env))
    other = app.test_client()
    other._cookies = dict(client._cookies)
    status = other.get("/api/spotify/token").status_code
    with app.app_context():
        database.engine.dispose()
    app.extensions["backline"].redis.close()
    return status == 200


@pytest.mark.processes
def test_after_it_the_old_key_can_go(
    env: dict[str, str], both_keys: dict[str, str], connected: list[FlaskClient]
) -> None:
    only_new = {**env, "TOKEN_ENCRYPTION_KEYS": NEW_KEY}
    assert works_with(both_keys, connected[0])
    assert not works_with(only_new, connected[0])

    first = flask(both_keys, "tokens", "rotate-keys")
    again = flask(both_keys, "tokens", "rotate-keys")

    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("sealed anew 3, unreadable 0\nEvery token is sealed with key ")
    assert again.stdout.startswith("sealed anew 0, unreadable 0\nEvery token is sealed with key ")
    assert all(works_with(only_new, client) for client in connected)


@pytest.mark.processes
def test_an_unreadable_row_is_reported_and_left_alone(
    both_keys: dict[str, str], connected: list[FlaskClient], app: Flask
) -> None:
    with app.app_context(), writing() as db:
        row = db.scalars(sa.select(AccessToken).order_by(AccessToken.id)).first()
        assert row is not None
        assert row.refresh_token is not None
        row.refresh_token = damaged = row.refresh_token[:-1] + bytes([row.refresh_token[-1] ^ 1])
        kept = (row.id, row.access_token, damaged)

    done = flask(both_keys, "tokens", "rotate-keys")

    assert done.returncode == 1
    assert done.stdout == "sealed anew 2, unreadable 1\n"
    assert "must stay: 1 rows" in done.stderr
    with app.app_context(), reading() as db:
        row = db.get(AccessToken, kept[0])
        assert row is not None
        assert (row.id, row.access_token, row.refresh_token) == kept


def test_a_row_that_is_written_meanwhile_is_left_to_the_writer(
    both_keys: dict[str, str],
    connected: list[FlaskClient],
    sandbox: SandboxClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read before a refresh, written after it: the old tokens must not come back."""
    monkeypatch.setattr(rekeying, "BATCH", 2)
    app = create_app(Config.from_env(both_keys))
    with app.app_context():
        with reading() as db:
            stale = list(db.scalars(sa.select(AccessToken)))
        with writing() as db:
            db.execute(sa.update(AccessToken).values(access_token=b"newer"))
        anew = {row.id: new for row in stale if (new := rekeying._sealed_anew(row))}
        with writing() as db:
            assert rekeying._write(db, stale, anew) == 0
        with reading() as db:
            stored = set(db.scalars(sa.select(AccessToken.access_token)))
        assert stored == {b"newer"}
        assert rotate_keys(lambda _: None) == Moved(total=3, seen=3, sealed=0, unreadable=3)
        database.engine.dispose()
    app.extensions["backline"].redis.close()
