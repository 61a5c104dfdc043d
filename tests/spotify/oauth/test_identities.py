"""Accounts with similar ids are different accounts, on every kind of database."""

import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.column_types import ExactString
from app.infra.database import Base, reading
from app.models import SpotifyUser, User
from tests.helpers.flows import connect, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.upstream import Reply, Upstream

SIMILAR_IDS = (
    "mira",
    "mira ",
    "mira  ",
    "mira\t",
    "mira\0",
    " mira",
    "Mira",
    "mïra",
    "mi\u0308ra",
    "mira\u200b",
)


@pytest.mark.parametrize("key", ["id", "account_id"])
def test_spotify_accounts_with_similar_ids_stay_apart(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient, upstream: Upstream, key: str
) -> None:
    visitors = {}
    for number, name in enumerate(SIMILAR_IDS):
        profile = {"id": f"person{number}", "display_name": f"Person {number}", key: name}
        upstream.replies(Reply(200, json.dumps(profile).encode()))
        visitors[name] = new_client()
        connect(visitors[name], sandbox)

    with app.app_context(), reading() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(SpotifyUser)) == len(SIMILAR_IDS)
    for number, (name, visitor) in enumerate(visitors.items()):
        connection = visitor.get("/api/spotify").json
        assert (connection["spotify_id" if key == "id" else key], connection["display_name"]) == (
            name,
            f"Person {number}",
        )


def test_user_is_not_found_by_a_padded_name(client: FlaskClient, app: Flask) -> None:
    user = register(client, "ada")

    with app.app_context(), reading() as db:
        for column, value in ((User.username, user["username"]), (User.email, user["email"])):
            assert db.scalar(sa.select(User.id).where(column == value)) == user["id"]
            assert db.scalar(sa.select(User.id).where(column == f"{value} ")) is None


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_external_text_is_compared_without_padding(app: Flask) -> None:
    exact = [
        (table.name, column.name)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, ExactString)
    ]
    columns = sa.text(
        "SELECT table_name, column_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = DATABASE()"
    )

    with app.app_context(), reading() as db:
        found = {(table, column): collation for table, column, collation in db.execute(columns)}

    assert ("spotify_users", "spotify_id") in exact
    assert {place: found[place] for place in exact} == dict.fromkeys(exact, "utf8mb4_nopad_bin")
