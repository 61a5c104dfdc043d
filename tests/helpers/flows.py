"""Actions of people, such as signing up and connecting Spotify, in one call each."""

import itertools
from datetime import timedelta
from typing import Any

import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.auth.personal_access_tokens import PersonalAccessTokens
from app.infra.database import reading
from app.models import Right, User
from tests.helpers.sandbox_client import SandboxClient, callback_query

PASSWORD = "a long sentence is best"
_numbers = itertools.count(1)


def register(client: FlaskClient, username: str | None = None) -> dict[str, Any]:
    """Create an account, and sign in to it. Returns the user."""
    name = username or f"person{next(_numbers)}"
    response = client.post(
        "/api/register", json={"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    )
    assert response.status_code == 201, response.text
    user: dict[str, Any] = response.json
    return user


def login(client: FlaskClient, name: str) -> TestResponse:
    return client.post("/api/login", json={"login": name, "password": PASSWORD})


def start_authorization(client: FlaskClient) -> str:
    """Start an authorization. Returns the URL of the consent page."""
    response = client.get("/api/spotify/authorize")
    assert response.json["status"] == "authorization_required", response.text
    return str(response.json["authorize_url"])


def send_callback(client: FlaskClient, callback: str) -> TestResponse:
    """Send the query of a callback URL to the API, as an SPA does."""
    return client.get("/api/spotify/authorize", query_string=callback_query(callback))


def connect(
    client: FlaskClient,
    sandbox: SandboxClient,
    person: str = "mira_t_42",
    browser: requests.Session | None = None,
) -> dict[str, Any]:
    """Connect Spotify as this person. Returns the connection."""
    response = send_callback(
        client, sandbox.consent(start_authorization(client), person=person, browser=browser)
    )
    assert response.status_code == 200, response.text
    assert response.json["status"] == "connected"
    connection: dict[str, Any] = response.json["spotify"]
    return connection


def register_own_application(client: FlaskClient, sandbox: SandboxClient) -> None:
    """Register an application of the default person, without a secret."""
    (created,) = sandbox.create_applications(owner="mira_t_42")
    response = client.put("/api/spotify/app", json={"client_id": created["client_id"]})
    assert response.status_code == 200, response.json


def create_token(client: FlaskClient, *rights: Right, days: int = 90) -> str:
    """Create a personal access token of the person who is signed in, by default with all rights."""
    app, user_id = client.application, client.get("/api/user").json["id"]
    with app.app_context():
        with reading() as db:
            epoch = db.scalars(sa.select(User.session_epoch).where(User.id == user_id)).one()
        tokens: PersonalAccessTokens = app.extensions["backline"].personal_access_tokens
        lifetime = timedelta(days=days)
        created = tokens.create(user_id, epoch, name="a script", rights=rights or [*Right], lifetime=lifetime)
    return created.token


def refresh_count(sandbox: SandboxClient) -> int:
    """Return the number of refresh calls that the sandbox received."""
    return len(sandbox.calls(grant_type="refresh_token"))


def another_tab(client: FlaskClient, worker: Flask | None = None) -> FlaskClient:
    """Return another client with the same cookies, for simultaneous calls, perhaps to another worker."""
    tab = (worker or client.application).test_client()
    tab._cookies = dict(client._cookies or {})
    return tab


def slug(response: TestResponse) -> str:
    """Return the slug of a problem. Fails if the response is something else."""
    assert response.content_type == "application/problem+json", response.text
    return str(response.json["type"]).removeprefix("/problems/")
