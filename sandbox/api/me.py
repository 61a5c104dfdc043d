"""GET /me."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from sandbox.api.blueprint import api, caller, granted
from sandbox.api.links import image_url, links
from sandbox.context import sandbox
from sandbox.people import Person


@api.get("/me")
def show_me() -> Response:
    """Return the profile of the current user."""
    person, settings = caller(), sandbox().settings
    profile: dict[str, Any] = {"account_id": person.account_id} if settings.account_id else {}
    profile |= {"display_name": person.display_name, "images": _images(person), **links("user", person.id)}
    if settings.mode != "dev2026":
        profile |= _former_members(person)
    return jsonify(profile)


def _images(person: Person) -> list[dict[str, Any]]:
    if not person.has_image:
        return []
    url = image_url("person", person.account_id)
    return [{"url": f"{url}?size={size}", "height": size, "width": size} for size in (300, 64)]


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
