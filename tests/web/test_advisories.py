"""Advisories of similar projects in 2026 do not apply here.

`docs/security.md` lists the advisories, and which test covers each.
"""

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.helpers.flows import register, start_authorization
from tests.helpers.mail_server import Mailbox, token_in
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Client = Callable[[], FlaskClient]
NEW_PASSWORD = "another long sentence"


@pytest.fixture
def secrets(mailbox: Mailbox, app: Flask, sandbox: SandboxClient) -> dict[str, str]:
    """One valid secret of each kind, all of them ada's."""
    client = app.test_client()
    register(client, "ada")
    verification = token_in(mailbox.wait_for("ada@example.com", "address"))
    client.post("/api/password-reset", json={"email": "ada@example.com"})
    reset = token_in(mailbox.wait_for("ada@example.com", "password"))
    state = parse_qs(urlsplit(start_authorization(client)).query)["state"][0]
    [cookie] = (client._cookies or {}).values()
    return {"session": cookie.value, "state": state, "verification": verification, "reset": reset}


def test_secrets_are_not_accepted_as_another_kind(
    secrets: dict[str, str], app: Flask, new_client: Client
) -> None:
    """A state worked as a sign-in link (better-auth CVE-2026-114607), or session id (CVE-2026-19349)."""
    cookie_name = app.extensions["backline"].config.session_cookie_name
    for kind, secret in secrets.items():
        visitor = new_client()
        if kind != "session":
            visitor.set_cookie(cookie_name, secret)
            assert not visitor.get("/api/session").json["authenticated"], kind
            visitor = new_client()
        if kind != "verification":
            rejected = visitor.put("/api/email-verification", json={"token": secret})
            assert rejected.json["type"] == "/problems/invalid-token", kind
        if kind != "reset":
            rejected = visitor.put("/api/password-reset", json={"token": secret, "password": NEW_PASSWORD})
            assert rejected.json["type"] == "/problems/invalid-token", kind
        # Even a valid state connects nothing in another session.
        response = visitor.get("/api/spotify/authorize", query_string={"code": "a-code", "state": secret})
        assert response.json["type"] == "/problems/spotify-state-mismatch", kind

    # Each secret still works for its own purpose.
    owner = new_client()
    owner.set_cookie(cookie_name, secrets["session"])
    assert owner.get("/api/session").json["authenticated"]
    assert owner.put("/api/email-verification", json={"token": secrets["verification"]}).status_code == 204
    reset = {"token": secrets["reset"], "password": NEW_PASSWORD}
    assert owner.put("/api/password-reset", json=reset).status_code == 204


def test_headers_do_not_replace_a_session(client: FlaskClient) -> None:
    for headers in (
        {"X-Forwarded-Uri": "/livez"},  # oauth2-proxy CVE-2026-40575, CVE-2026-76835
        {"X-Original-URL": "/livez"},
        {"X-Rewrite-URL": "/livez"},
        {"User-Agent": "GoogleHC/1.0"},  # oauth2-proxy CVE-2026-34457
        {"User-Agent": "kube-probe/1.30"},
        {"Authorization": "Bearer"},  # Auth.js GHSA-xmf8-cvqr-rfgj
        {"Authorization": "Bearer \xff\x00"},
        {"Authorization": "Basic !!!"},
    ):
        assert client.get("/api/user", headers=headers).status_code == 401, headers
        session = client.get("/api/session", headers=headers)
        assert session.status_code == 401 or session.json["authenticated"] is False, headers


def test_path_spellings_do_not_evade_access_rules(client: FlaskClient) -> None:
    """oauth2-proxy CVE-2026-41059: `#` in a path widened a pattern of open routes."""
    for path in ("/api/user%23/livez", "/api/user;/livez", "/livez/../api/user", "/api//user"):
        assert client.get(path).status_code in (401, 404), path


def test_email_address_with_two_domains_is_rejected(client: FlaskClient) -> None:
    for address in (
        "ada\uff20evil.example@example.com",  # Auth.js GHSA-7rqj-j65f-68wh: a look-alike of @
        "ada\ufe6bevil.example@example.com",
        "ada@evil.example@example.com",  # oauth2-proxy CVE-2026-40574
        '"ada@evil.example"@example.com',
    ):
        wanted = {"username": "ada", "email": address, "password": NEW_PASSWORD}
        rejected = client.post("/api/register", json=wanted)
        assert rejected.status_code == 422, address
        assert list(rejected.json["errors"]) == ["email"]
