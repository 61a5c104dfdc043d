"""Actions of devices that ask for a token (RFC 8628), and of people who decide."""

from typing import Any

import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.auth.devices.flow import GRANT_TYPE
from tests.helpers.flows import PASSWORD


def device_client(app: Flask) -> FlaskClient:
    """Return a client that sends no header of a page of the app."""
    client = app.test_client()
    client.environ_base.pop("HTTP_X_REQUESTED_WITH")
    return client


def start(device: FlaskClient, *, client_name: str = "my-cli", scope: str = "spotify:read") -> dict[str, Any]:
    """Start a device authorization."""
    form = {"client_name": client_name, "scope": scope}
    response = device.post("/api/oauth/device_authorization", data=form)
    assert response.status_code == 200, response.text
    started: dict[str, Any] = response.json
    return started


def poll(device: FlaskClient, started: dict[str, Any]) -> TestResponse:
    form = {"grant_type": GRANT_TYPE, "device_code": started["device_code"]}
    return device.post("/api/oauth/token", data=form)


def device_path(started: dict[str, Any]) -> str:
    return f"/api/user/devices/{started['user_code']}"


def approve(person: FlaskClient, started: dict[str, Any]) -> TestResponse:
    return person.post(device_path(started), json={"decision": "approve", "current_password": PASSWORD})


def deny(person: FlaskClient, started: dict[str, Any]) -> TestResponse:
    return person.post(device_path(started), json={"decision": "deny"})


def oauth_error(response: TestResponse) -> str:
    """Return the code of an OAuth error. Fails if the response is something else."""
    assert (response.status_code, response.content_type) == (400, "application/json"), response.text
    assert set(response.json) == {"error", "error_description"}
    return str(response.json["error"])


def age_polls(app: Flask, seconds: float) -> None:
    """Move all polls into the past."""
    client: redis.Redis = app.extensions["backline"].redis
    for key in client.keys("device-authorization:polls:*"):
        client.hincrby(key, "last", -round(seconds * 1000))
