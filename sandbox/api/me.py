"""GET /me."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from sandbox.api.blueprint import api, caller, granted
from sandbox.api.members import covers, links
from sandbox.context import sandbox
from sandbox.people import Person


@api.get("/me")
def show_me() -> Response:
    """Return the profile of the current user."""
    person, settings = caller(), sandbox().settings
    profile: dict[str, Any] = {"account_id": person.account_id} if settings.account_id else {}
    profile |= {"display_name": person.display_name, "images": images(person), **links("user", person.id)}
    if settings.mode != "dev2026":
        profile |= _former_members(person)
    return jsonify(profile)


def images(person: Person) -> list[dict[str, Any]]:
    """Return the pictures of a person."""
    return covers("person", person.account_id, (300, 64)) if person.has_image else []


def _former_members(person: Person) -> dict[str, Any]:
    """Return the members that new development-mode apps no longer get."""
    members: dict[str, Any] = {"followers": {"href": None, "total": person.followers}}
    if granted("user-read-private"):
        members |= {
            "country": person.country,
            "product": person.product,
            "explicit_content": {"filter_enabled": False, "filter_locked": False},
        }
    return members | ({"email": person.email} if granted("user-read-email") else {})
