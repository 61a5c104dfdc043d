"""What people do to verify, change, and restore their email address."""

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading
from app.models import User
from tests.helpers.flows import PASSWORD, register, slug
from tests.helpers.mail_server import VERIFY, Mailbox, token_in

ADA, NEW, OTHER = "ada@example.com", "new@example.com", "other@example.com"
NEW_PASSWORD = "another sentence, and longer"


def verify(client: FlaskClient, mailbox: Mailbox, address: str) -> tuple[int, str]:
    """Verify an address with the link that was sent to it. Returns the status, and the problem if any."""
    token = token_in(mailbox.wait_for(address, VERIFY))
    response = client.put("/api/email-verification", json={"token": token})
    return response.status_code, "" if response.status_code == 204 else slug(response)


def change(client: FlaskClient, address: str) -> dict[str, object]:
    """Request a change of the address. Returns the user."""
    response = client.patch("/api/user", json={"email": address, "current_password": PASSWORD})
    assert response.status_code == 200, response.text
    found: dict[str, object] = response.json
    return found


def undo(client: FlaskClient, token: str) -> int:
    """Undo a change of the address. Returns the status."""
    return client.put("/api/email-change", json={"token": token, "decision": "undo"}).status_code


def addresses(client: FlaskClient) -> tuple[str, bool, str | None]:
    """Return the address, whether it is verified, and the pending address."""
    user = client.get("/api/user").json
    return user["email"], user["email_verified"], user["pending_email"]


def session_epoch(app: Flask) -> int:
    """Return the number that every valid session contains."""
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(User.session_epoch)).one()


def register_ada(client: FlaskClient, mailbox: Mailbox) -> FlaskClient:
    """Register Ada and verify her address."""
    register(client, "ada")
    assert verify(client, mailbox, ADA) == (204, "")
    return client
