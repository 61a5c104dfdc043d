"""Registration, login, and logout."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import User
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD, login, register, slug
from tests.helpers.servers import Server

NEW = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}


def stored(app: Flask) -> list[User]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(User)))


@pytest.mark.full_hashing_cost
def test_registration_creates_an_account_and_signs_in(client: FlaskClient, app: Flask) -> None:
    response = client.post("/api/register", json=NEW)

    assert response.status_code == 201
    assert response.headers["Location"] == "/api/user"
    assert response.json.keys() == {
        "id",
        "username",
        "email",
        "has_password",
        "email_verified",
        "pending_email",
        "created_at",
    }
    assert response.json["username"] == "ada"
    assert response.json["email_verified"] is False
    assert client.get("/api/user").json == response.json
    [user] = stored(app)
    assert user.password_hash.startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert PASSWORD not in user.password_hash


def test_session_of_a_visitor_is_not_authenticated(client: FlaskClient) -> None:
    response = client.get("/api/session")

    assert response.status_code == 200
    assert response.json == {"authenticated": False, "user": None, "spotify": None}
    assert "Set-Cookie" not in response.headers


def test_user_route_requires_a_sign_in(client: FlaskClient) -> None:
    response = client.get("/api/user")

    assert (response.status_code, slug(response)) == (401, "not-signed-in")
    assert response.headers["WWW-Authenticate"]


def test_usernames_and_addresses_are_unique(new_client: Callable[[], FlaskClient], app: Flask) -> None:
    new_client().post("/api/register", json=NEW)

    for change, problem in (
        ({"email": "other@example.com"}, "username-taken"),
        ({"username": "ADA", "email": "other@example.com"}, "username-taken"),
        ({"username": "other"}, "email-taken"),
        ({"username": "other", "email": " Ada@EXAMPLE.com "}, "email-taken"),
    ):
        response = new_client().post("/api/register", json={**NEW, **change})
        assert (response.status_code, slug(response)) == (409, problem), change
    assert len(stored(app)) == 1


@pytest.mark.requirement("H3")
def test_usernames_that_only_look_alike_are_different(
    new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    names = ["ada", "adä", "ad\u0430", "ada."]  # an umlaut, a Cyrillic letter, a dot
    for number, name in enumerate(names):
        new = {"username": name, "email": f"person{number}@example.com", "password": PASSWORD}
        assert new_client().post("/api/register", json=new).status_code == 201, name

    assert len(stored(app)) == len(names)


@pytest.mark.sqlite_only
def test_registration_reports_invalid_fields(client: FlaskClient, app: Flask) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"username": ""}, "username"),
        ({"username": "a"}, "username"),
        ({"username": "a b"}, "username"),
        ({"username": "a@b"}, "username"),
        ({"username": "ada\u200b"}, "username"),
        ({"username": "x" * 65}, "username"),
        ({"username": 5}, "username"),
        ({"username": None}, "username"),
        ({"email": "ada"}, "email"),
        ({"email": "ada@"}, "email"),
        ({"email": "ada@example"}, "email"),
        ({"email": "ada@example..com"}, "email"),
        ({"email": "ada@.example.com"}, "email"),
        ({"email": "ada@mail.example\u3002com"}, "email"),
        ({"email": "ada@example.com\r\nBcc: x@example.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"password": "seven77"}, "password"),
        ({"password": "x" * 257}, "password"),
        ({"is_admin": True}, "is_admin"),
        ({"id": 7}, "id"),
    ]
    for change, field in changes:
        response = client.post("/api/register", json={**NEW, **change})
        assert (response.status_code, slug(response)) == (422, "validation-error"), change
        assert list(response.json["errors"]) == [field], change
        assert PASSWORD not in response.text
    for missing in NEW:
        body = {name: value for name, value in NEW.items() if name != missing}
        response = client.post("/api/register", json=body)
        assert response.status_code == 422
        assert response.json["errors"] == {missing: ["This field is required."]}
    assert stored(app) == []


def test_login_accepts_a_username_or_an_address(new_client: Callable[[], FlaskClient]) -> None:
    user = register(new_client(), "ada")

    for name in ("ada", "ADA", " ada ", "ada@example.com", "Ada@Example.COM"):
        response = login(client := new_client(), name)
        assert (response.status_code, response.json) == (200, user), name
        assert client.get("/api/session").json["user"] == user


def test_logout_is_final_and_idempotent(client: FlaskClient) -> None:
    register(client)
    cookie = client.get_cookie("backline_session")
    assert cookie is not None

    assert client.post("/api/logout").status_code == 204
    assert client.get_cookie("backline_session") is None
    assert client.post("/api/logout").status_code == 204

    client.set_cookie("backline_session", cookie.value)
    assert client.get("/api/session").json["authenticated"] is False
    assert client.get("/api/user").status_code == 401


def test_session_of_a_deleted_account_is_not_signed_in(client: FlaskClient, app: Flask) -> None:
    register(client)
    with app.app_context(), writing() as db:
        db.execute(sa.delete(User))

    assert client.get("/api/user").status_code == 401
    assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.requirement("H6")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_registration_survives_a_lost_reply_to_its_commit(
    mysql_proxy: FaultProxy, app: Flask, client: FlaskClient
) -> None:
    mysql_proxy.drop_reply(b"COMMIT", since=b"INSERT INTO users")

    response = client.post("/api/register", json=NEW)

    mysql_proxy.wait_until_dropped()
    assert response.status_code == 201, response.text
    assert client.get("/api/user").json == response.json
    assert len(stored(app)) == 1
    again = client.post("/api/register", json=NEW)
    assert (again.status_code, slug(again)) == (409, "username-taken")


@pytest.mark.requirement("H3")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_concurrent_registrations_of_one_name_create_one_account(
    server: Callable[..., AbstractContextManager[Server]], app: Flask
) -> None:
    def attempt(number: int) -> tuple[int, str]:
        for _ in range(20):
            response = requests.post(
                f"{api.url}/api/register",
                json={**NEW, "email": f"ada{number}@example.com"},
                headers={"X-Requested-With": "test"},
                timeout=60,
            )
            if response.status_code != 503:  # too many callers wait for a hashing slot
                break
        return response.status_code, response.json().get("type", "")

    with server(workers=2, threads=8) as api, ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(attempt, range(16)))

    assert sorted(status for status, _ in responses) == [201] + [409] * 15
    assert {kind for status, kind in responses if status == 409} == {"/problems/username-taken"}
    assert len(stored(app)) == 1
