"""A secret of one kind is never accepted as another kind.

The class of better-auth CVE-2026-114607 (an OAuth state as a sign-in link) and LemonLDAP::NG CVE-2026-19349
(an OAuth state as a session id).
"""

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.journeys import first_visit, register
from tests.mailbox import Mailbox, token_in
from tests.sandbox_client import SandboxClient

Client = Callable[[], FlaskClient]
NEW_PASSWORD = "another long sentence"


@pytest.fixture
def secrets(mailbox: Mailbox, app: Flask, sandbox: SandboxClient) -> dict[str, str]:
    """One live secret of each kind, all of them ada's."""
    client = app.test_client()
    register(client, "ada")
    verification = token_in(mailbox.wait_for("ada@example.com", "address"))
    client.post("/api/password-reset", json={"email": "ada@example.com"})
    reset = token_in(mailbox.wait_for("ada@example.com", "password"))
    state = parse_qs(urlsplit(first_visit(client)).query)["state"][0]
    [cookie] = client._cookies.values()
    return {"session": cookie.value, "state": state, "verification": verification, "reset": reset}


def test_no_secret_is_accepted_as_another_kind(
    secrets: dict[str, str], app: Flask, new_client: Client
) -> None:
    cookie_name = app.extensions["backline"].config.session_cookie_name
    for kind, secret in secrets.items():
        stranger = new_client()
        if kind != "session":
            stranger.set_cookie(cookie_name, secret)
            assert not stranger.get("/api/session").json["authenticated"], kind
            stranger = new_client()
        if kind != "verification":
            refused = stranger.put("/api/email-verification", json={"token": secret})
            assert refused.json["type"] == "/problems/invalid-token", kind
        if kind != "reset":
            refused = stranger.put("/api/password-reset", json={"token": secret, "password": NEW_PASSWORD})
            assert refused.json["type"] == "/problems/invalid-token", kind
        # Even the right state connects nothing from another session.
        answer = stranger.get("/api/spotify/authorize", query_string={"code": "a-code", "state": secret})
        assert answer.json["type"] == "/problems/spotify-state-mismatch", kind

    # Every one of them still works where it belongs.
    owner = new_client()
    owner.set_cookie(cookie_name, secrets["session"])
    assert owner.get("/api/session").json["authenticated"]
    assert owner.put("/api/email-verification", json={"token": secrets["verification"]}).status_code == 204
    reset = {"token": secrets["reset"], "password": NEW_PASSWORD}
    assert owner.put("/api/password-reset", json=reset).status_code == 204
