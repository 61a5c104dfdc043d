"""Many connections that were made with applications of their owners."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.clock import utc_now
from app.infra.database import Base, reading, writing
from app.models import AccessToken, SpotifyApp, SpotifyUser, User
from app.spotify.applications.encryption import encrypt_secret
from app.spotify.tokens.encryption import encrypt_tokens
from tests.helpers.sandbox_client import SandboxClient

# What the sandbox returns of an application and its people.
Created = dict[str, Any]


def create_own_applications(
    app: Flask, sandbox: SandboxClient, count: int, *, people: int = 1, public: bool = False
) -> list[Created]:
    """Create applications at Spotify and here, and connections of this many people with each.

    Their access tokens have expired, the first person's of each application first. The members `id` and
    `connections` of the result are the ids of the rows.
    """
    created = sandbox.create_applications(count, seed={"count": people, "public": public})
    cipher = app.extensions["backline"].token_cipher
    with app.app_context(), writing() as session:
        now = database.db_now(session)
        user_ids, app_ids = (_unused_ids(session, model, count) for model in (User, SpotifyApp))
        connection_ids = iter(_unused_ids(session, SpotifyUser, count * people))
        users, applications, connections, grants = [], [], [], []
        for each, user_id, app_id in zip(created, user_ids, app_ids, strict=True):
            each |= {"id": app_id, "connections": []}
            name, client_id = f"owner-{user_id}", each["client_id"]
            users.append(
                {"id": user_id, "username": name, "email": f"{name}@example.com", "password_hash": ""}
            )
            secret = encrypt_secret(cipher, app_id, None if public else each["client_secret"])
            applications.append({"id": app_id, "owner_id": user_id, "client_id": client_id, **secret})
            for number, person in enumerate(each["people"]):
                connection_id = next(connection_ids)
                each["connections"].append(connection_id)
                identity = {"spotify_id": person["id"], "account_id": person["account_id"]}
                connections.append({"id": connection_id, "spotify_app_id": app_id, **identity})
                expires_at = now - timedelta(minutes=people - number)
                key = {
                    "spotify_user_id": connection_id,
                    "grant_id": f"{connection_id:032x}",
                    "client_id": client_id,
                }
                tokens = person["access_token"], person["refresh_token"]
                grants.append(
                    {
                        **key,
                        **encrypt_tokens(cipher, AccessToken(**key), *tokens),
                        "scope": person["scope"],
                        "expires_at": expires_at,
                        "due_at": expires_at - timedelta(minutes=15),
                        "authorized_at": expires_at - timedelta(hours=1),
                    }
                )
        verified = {"email_verified_at": utc_now()}
        session.execute(sa.insert(User), [user | verified for user in users])
        for model, rows in ((SpotifyApp, applications), (SpotifyUser, connections), (AccessToken, grants)):
            session.execute(sa.insert(model), rows)
    return created


def _unused_ids(session: Session, model: type[Base], count: int) -> range:
    newest = session.execute(sa.select(sa.func.max(sa.inspect(model).primary_key[0]))).scalar_one() or 0
    return range(newest + 1, newest + 1 + count)


def states(app: Flask, applications: Iterable[Created]) -> list[str]:
    """Return the states of applications here, each once."""
    ids = [each["id"] for each in applications]
    with app.app_context(), reading() as session:
        found = sa.select(SpotifyApp.state).where(SpotifyApp.id.in_(ids)).distinct()
        return sorted(session.scalars(found))
