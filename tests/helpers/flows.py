"""What people do, in one call each, for tests that are about something else."""

import itertools
from typing import Any

import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.helpers.sandbox_client import SandboxClient, callback_query

PASSWORD = "a long sentence is best"
_numbers = itertools.count(1)


def register(client: FlaskClient, username: str | None = None) -> dict[str, Any]:
    """Make an account and stay signed in to it. Returns the user."""
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
    """Ask to connect Spotify. Returns the URL at Spotify."""
    response = client.get("/api/spotify/authorize")
    assert response.json["status"] == "authorization_required", response.text
    return str(response.json["authorize_url"])


def send_callback(client: FlaskClient, callback: str) -> TestResponse:
    """Pass on what Spotify added to the redirect URI, as an SPA does."""
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


def refresh_count(sandbox: SandboxClient) -> int:
    """How many times the sandbox was asked to refresh a grant."""
    return len(sandbox.calls(grant_type="refresh_token"))


def another_tab(client: FlaskClient, worker: Flask | None = None) -> FlaskClient:
    """A client of its own with the same cookies, for a call at the same time, perhaps to another worker."""
    tab = (worker or client.application).test_client()
    tab._cookies = dict(client._cookies or {})
    return tab


def slug(response: TestResponse) -> str:
    """Which problem a response is. Fails if it is none."""
    assert response.content_type == "application/problem+json", response.text
    return str(response.json["type"]).removeprefix("/problems/")
