"""Validation messages: all problems at once, in plain language."""

import pytest
from flask.testing import FlaskClient

from app.auth import schemas as auth_schemas
from app.user import schemas as user_schemas
from app.web import validation
from tests.helpers.flows import register, slug

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

LENGTH, AT_MOST = "Use 8 to 256 characters.", "Use at most 1024 characters."


def test_form_reports_all_problems_at_once(client: FlaskClient) -> None:
    register(client, "ada")
    forms: list[tuple[str, str, object, dict[str, str]]] = [
        (
            "POST",
            "/api/register",
            {"username": "a b", "email": "nowhere", "password": "short"},
            {"username": validation.USERNAME, "email": validation.EMAIL, "password": LENGTH},
        ),
        (
            "POST",
            "/api/register",
            {"username": "a b", "email": "ada.lovelace@example.com", "password": "ada.lovelace1"},
            {"username": validation.USERNAME, "password": validation.GUESSABLE},
        ),
        (
            "POST",
            "/api/register",
            {"username": "adalovelace", "email": "nowhere", "password": "AdaLovelace!"},
            {"email": validation.EMAIL, "password": validation.GUESSABLE},
        ),
        (
            "POST",
            "/api/register",
            {"username": 5, "password": "password1", "role": "admin"},
            {
                "username": validation.NOT_TEXT,
                "email": validation.REQUIRED,
                "password": validation.GUESSABLE,
                "role": validation.UNKNOWN,
            },
        ),
        (
            "PATCH",
            "/api/user",
            {"username": "a b", "email": "new@example.com"},
            {"username": validation.USERNAME, "current_password": validation.PASSWORD_NEEDED},
        ),
        (
            "PATCH",
            "/api/user",
            {"username": "a b", "email": "nowhere", "current_password": None},
            {
                "username": validation.USERNAME,
                "email": validation.EMAIL,
                "current_password": validation.NOT_TEXT,
            },
        ),
        (
            "PUT",
            "/api/user/password",
            {"new_password": "ada@example.com"},
            {"current_password": validation.REQUIRED, "new_password": validation.GUESSABLE},
        ),
        (
            "PUT",
            "/api/user/password",
            {"current_password": "x" * 1025, "new_password": "x" * 257},
            {"current_password": AT_MOST, "new_password": LENGTH},
        ),
        (
            "PUT",
            "/api/password-reset",
            {"token": "x" * 201, "password": "password1"},
            {"token": validation.NOT_A_TOKEN, "password": validation.GUESSABLE},
        ),
        (
            "PUT",
            "/api/email-change",
            {"token": None, "decision": "confirm"},
            {"token": validation.NOT_TEXT, "decision": validation.UNDO_ONLY},
        ),
        ("POST", "/api/password-reset", {"email": "x" * 501}, {"email": validation.EMAIL}),
        ("POST", "/api/login", ["ada"], {"_schema": validation.NOT_AN_OBJECT}),
    ]
    for method, path, body, errors in forms:
        response = client.open(path, method=method, json=body)
        assert (response.status_code, slug(response)) == (422, "validation-error"), response.text
        assert response.json["errors"] == {field: [message] for field, message in errors.items()}


def test_every_request_field_has_our_messages(database_url: str) -> None:
    bodies = [
        kind
        for kind in {**vars(auth_schemas), **vars(user_schemas)}.values()
        if isinstance(kind, type) and issubclass(kind, validation.Schema)
    ]

    ours = validation.Text | validation.Flag | validation.Items | validation.Number
    assert len(bodies) > 9
    for kind in bodies:
        for name, field in kind().fields.items():
            assert isinstance(field, ours), (kind, name)
