"""One table is restored without the others: connections continue, or can be authorized again."""

from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import AccessToken, TokenRefresh
from tests.helpers.factories import advance_time
from tests.helpers.flows import connect, register
from tests.helpers.sandbox_client import SandboxClient


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


def effective(app: Flask) -> list[int]:
    with app.app_context(), reading() as db:
        refreshed = sa.select(TokenRefresh.generation).where(TokenRefresh.effective == 1)
        return list(db.scalars(refreshed.order_by(TokenRefresh.id)))


def refresh(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> int:
    advance_time(app, sandbox, 3700)
    return client.get("/api/spotify/token").status_code


def backup(app: Flask) -> dict[str, Any]:
    return {column.name: getattr(row(app), column.name) for column in AccessToken.__table__.columns}


@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_generation_set_back_moves_past_the_history(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, rotate: bool
) -> None:
    sandbox.settings(rotate=rotate, rotation_grace_s=120)
    register(client)
    connect(client, sandbox)
    assert refresh(client, app, sandbox) == 200
    saved = backup(app)
    assert [refresh(client, app, sandbox) for _ in range(3)] == [200] * 3
    assert row(app).generation == 4
    newest = {name: saved[name] if name == "generation" else getattr(row(app), name) for name in saved}
    with app.app_context(), writing() as db:  # a rotating Spotify no longer accepts the old token
        db.execute(sa.update(AccessToken).values(newest if rotate else saved))

    assert [refresh(client, app, sandbox) for _ in range(2)] == [200] * 2

    assert row(app).generation == 6
    assert effective(app) == [0, 1, 2, 3, 4, 5]


@pytest.mark.sqlite_only
def test_generation_set_back_loses_no_refresh_token(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """Not even if Spotify fails at the first attempt after the restore."""
    sandbox.settings(rotate=True, rotation_grace_s=0)
    connect(client, sandbox)
    assert [refresh(client, app, sandbox) for _ in range(2)] == [200] * 2
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(generation=0))
    sandbox.fault(on="refresh", kind="changed_members", members={"access_token": None}, after_effect=True)

    assert [refresh(client, app, sandbox) for _ in range(3)] == [503, 200, 200]
    assert effective(app) == [0, 1, 2, 3]


@pytest.mark.sqlite_only
def test_refresh_works_without_history_of_the_grant(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    assert refresh(client, app, sandbox) == 200
    with app.app_context(), writing() as db:
        db.execute(sa.update(TokenRefresh).values(grant_id="another"))

    assert refresh(client, app, sandbox) == 200
    with app.app_context(), writing() as db:
        db.execute(sa.delete(TokenRefresh))
    assert refresh(client, app, sandbox) == 200
    assert row(app).generation == 3


@pytest.mark.sqlite_only
def test_connection_without_tokens_can_be_authorized_again(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        db.execute(sa.delete(AccessToken))

    assert client.get("/api/spotify").json["status"] == "not_connected"
    assert client.get("/api/spotify/token").status_code == 409
    connect(client, sandbox)
    assert refresh(client, app, sandbox) == 200
