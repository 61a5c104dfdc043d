"""Access rules on every route: visitors are rejected, and other people's objects look like missing ones."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import db, writing
from app.models import User
from app.web.access import Access
from tests.helpers.devices import device_client, device_path, start
from tests.helpers.flows import PASSWORD, another_tab, create_token, login, register, slug
from tests.helpers.route_matrix import (
    Route,
    Snapshot,
    ada,
    body_schema,
    documented,
    every_route,
    operation,
    send,
    valid_body,
    wait_for_background_work,
)
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.slow,
]


def signed_in_routes(app: Flask) -> list[Route]:
    return [route for route in every_route(app) if route.access is Access.SIGNED_IN]


def assert_rejected_everywhere(client: FlaskClient) -> None:
    """Assert that every route that requires an account responds with 401 and has no effect."""
    app = client.application
    document, before = documented(app), Snapshot(app)
    for route in signed_in_routes(app):
        response = send(client, route, json=valid_body(document, route))
        assert (response.status_code, slug(response)) == (401, "not-signed-in"), route
        assert response.headers["WWW-Authenticate"], route
        assert "Set-Cookie" not in response.headers, route
        wait_for_background_work(app)
        assert Snapshot(app) == before, route


@pytest.mark.requirement("G1")
def test_visitor_is_rejected_by_every_route_that_requires_an_account(
    client: FlaskClient, new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    ada(client, sandbox)

    assert_rejected_everywhere(new_client())


@pytest.mark.requirement("G1")
def test_unknown_session_cookie_counts_as_no_session(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(new_client(), "ada")
    for cookie in ("A" * 43, "A" * 42 + "é", "A" * 5000, "../../etc/passwd", "\x00", "1", '"'):
        sent = {"Cookie": f"backline_session={cookie}"}
        assert client.get("/api/user", headers=sent).status_code == 401, cookie
        session = client.get("/api/session", headers=sent)
        assert session.json == {"authenticated": False, "user": None, "spotify": None}, cookie


def delete_account(client: FlaskClient) -> None:
    assert another_tab(client).delete("/api/user", json={"password": PASSWORD}).status_code == 204


def delete_row(client: FlaskClient) -> None:
    with client.application.app_context(), writing() as session:
        session.execute(sa.delete(User).where(User.username == "ada"))


def sign_out(client: FlaskClient) -> None:
    assert another_tab(client).post("/api/logout").status_code == 204


def change_password(client: FlaskClient) -> None:
    login(elsewhere := client.application.test_client(), "ada")
    change = {"current_password": PASSWORD, "new_password": "another sentence, and longer"}
    assert elsewhere.put("/api/user/password", json=change).status_code == 204


def restore_session_after_password_change(client: FlaskClient) -> None:
    """Restore the stored session after all have ended. Its epoch is no longer valid."""
    store = client.application.extensions["backline"].redis
    stored = {key: store.get(key) for key in store.keys("session:*")}
    change_password(client)
    for key, data in stored.items():
        store.set(key, data)


def end_other_sessions(client: FlaskClient) -> None:
    login(elsewhere := client.application.test_client(), "ada")
    assert elsewhere.delete("/api/user/sessions").status_code == 204


@pytest.mark.requirement("G1")
@pytest.mark.parametrize(
    "end_session",
    [
        delete_account,
        delete_row,
        sign_out,
        change_password,
        restore_session_after_password_change,
        end_other_sessions,
    ],
)
def test_ended_session_is_rejected_by_every_route(
    client: FlaskClient, sandbox: SandboxClient, end_session: Callable[[FlaskClient], None]
) -> None:
    ada(client, sandbox)
    end_session(client)
    wait_for_background_work(client.application)

    assert_rejected_everywhere(client)


def session_id(client: FlaskClient) -> str:
    [session] = client.get("/api/user/sessions").json["items"]
    return str(session["id"])


def user_code(client: FlaskClient) -> str:
    """Return the code of a device that this person has looked up."""
    started = start(device_client(client.application))
    assert client.get(device_path(started)).status_code == 200
    return str(started["user_code"])


def token_id(client: FlaskClient) -> str:
    create_token(client)
    [token] = client.get("/api/user/tokens").json["items"]
    return str(token["id"])


# How to get one's own id of each kind that a path can contain. Add every new kind here.
IDS: dict[str, Callable[[FlaskClient], str]] = {
    "session_id": session_id,
    "user_code": user_code,
    "token_id": token_id,
}


@pytest.mark.requirement("G1")
def test_ids_of_other_people_are_treated_like_unknown_ids(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    document = documented(app)
    ada(client, sandbox)
    register(visitor := new_client(), "eve")
    wait_for_background_work(app)
    ids = {kind: own_id(client) for kind, own_id in IDS.items()}
    before, checked = Snapshot(app), 0
    for route in signed_in_routes(app):
        for kind, adas in ids.items():
            if f"{{{kind}}}" not in route.template:
                continue
            missing = ("9" if adas.isdigit() else "f") * len(adas)
            responses = [
                visitor.open(
                    route.template.format(**{kind: name}),
                    method=route.method,
                    json=valid_body(document, route),
                )
                for name in (adas, missing)
            ]
            assert without_ids(responses[0], adas) == without_ids(responses[1], missing), route
            assert Snapshot(app) == before, route
            checked += 1
    assert checked == sum("{" in route.template for route in signed_in_routes(app)), (
        "add the new kind of id to IDS"
    )


def without_ids(response: TestResponse, name: str) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Return a response without the request id and the requested id, which always differ."""
    headers = [header for header in response.headers if header[0] != "X-Request-ID"]
    request_id = response.headers["X-Request-ID"]
    return (
        response.status_code,
        response.data.replace(request_id.encode(), b"").replace(name.encode(), b""),
        headers,
    )


@pytest.mark.requirement("G1")
def test_ids_of_other_people_in_query_and_body_are_ignored(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    document = documented(app)
    person = ada(client, sandbox).get("/api/user").json
    link = client.get("/api/spotify").json
    ids = {
        "id": person["id"],
        "user_id": person["id"],
        "username": "ada",
        "spotify_id": link["spotify_id"],
        "account_id": link["account_id"],
        "session_id": session_id(client),
        "spotify_user_id": 1,
    }
    register(eve := new_client(), "eve")
    for route in every_route(app):
        if route.method == "GET" and operation(document, route):
            response = eve.get(route.path, query_string=ids, json=ids)
            assert not re.search(r'"ada["@]', response.text), route
            assert link["spotify_id"] not in response.text, route


@pytest.mark.requirement("G1")
def test_connection_of_another_person_is_unusable_even_if_the_session_names_it(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    with client.session_transaction("/api/session") as session:
        adas = session["spotify_user_id"]
    register(eve := new_client(), "eve")
    with eve.session_transaction("/api/session") as session:
        session["spotify_user_id"] = adas

    assert eve.get("/api/spotify").json == {"status": "not_connected"}
    assert eve.get("/api/session").json["spotify"] is None
    assert slug(eve.get("/api/spotify/token")) == "spotify-not-connected"
    assert slug(eve.get("/api/spotify/v1/me")) == "spotify-not-connected"
    assert eve.get("/api/spotify/authorize").json["status"] == "authorization_required"
    assert eve.delete("/api/spotify").status_code == 204
    assert client.get("/api/spotify").json["status"] == "connected"


# --- G2: which members may be written ------------------------------------------------------------------


def columns() -> list[str]:
    found = {column.name for table in db.metadata.tables.values() for column in table.columns}
    return sorted(found | {"role", "is_admin", "gen", "__class__", "constructor"})


@pytest.mark.requirement("G2")
def test_bodies_cannot_set_columns_that_a_route_does_not_list(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    document = documented(app)
    ada(client, sandbox)
    before = Snapshot(app)
    bodies = {route: schema for route in every_route(app) if (schema := body_schema(document, route))}
    assert bodies
    for route, schema in bodies.items():
        good = valid_body(document, route) or {}
        forbidden = [name for name in columns() if name not in schema["properties"]]
        for name, value in ((name, value) for name in forbidden for value in (1, None)):
            response = send(client, route, json={**good, name: value})
            assert (response.status_code, slug(response)) == (422, "validation-error"), (route, name)
            assert list(response.json["errors"]) == [name], route
        everything: dict[str, Any] = {**good, **dict.fromkeys(forbidden, "x")}
        assert set(send(client, route, json=everything).json["errors"]) == set(forbidden), route
        wait_for_background_work(app)
        assert Snapshot(app) == before, route


@pytest.mark.requirement("G2")
def test_queries_cannot_set_columns(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    ada(client, sandbox)
    before = Snapshot(app)

    response = client.patch("/api/user", json={}, query_string=dict.fromkeys(columns(), "1"))

    assert response.status_code == 200
    assert Snapshot(app) == before


@pytest.mark.requirement("G2")
def test_profile_change_changes_only_the_given_columns(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    [before] = rows(app)

    client.patch("/api/user", json={"username": "countess"})
    [named] = rows(app)
    body = {"email": "countess@example.com", "current_password": PASSWORD}
    client.patch("/api/user", json=body)
    [moved] = rows(app)

    assert changed(before, named) == {"username", "updated_at"}
    # The old address was not verified, so it is replaced at once.
    assert changed(named, moved) == {"email", "email_address", "updated_at"}


def rows(app: Flask) -> list[dict[str, Any]]:
    with app.app_context(), db.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(User.__table__)).mappings()]


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}
