"""Other users, and playlists under the path of their user."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify

from sandbox.api.blueprint import api, caller, needs
from sandbox.api.errors import ApiError, not_found
from sandbox.api.me import images
from sandbox.api.members import links
from sandbox.api.playlist_access import MODIFY
from sandbox.api.playlists import create_playlist, playlists_of
from sandbox.catalog import base62_id
from sandbox.context import sandbox
from sandbox.people import Person


def _named(person_id: str) -> Person:
    """Return the user with this id. Invented ones follow an invented playlist."""
    state = sandbox()
    person = state.people.named(person_id)
    if person is None and state.settings.invents:
        playlist_id = base62_id(f"playlist of {person_id}")
        playlist = state.music.playlists.get(playlist_id) or state.music.invent_playlist(playlist_id)
        playlist.followers.add(person_id)
        return Person(person_id, person_id, person_id, "free", "SE", "", 0, False, "")
    if person is None:
        raise not_found()
    return person


@api.get("/users/<person_id>")
def show_user(person_id: str) -> Response:
    """Return a user's public profile."""
    person = _named(person_id)
    profile: dict[str, Any] = {
        "display_name": person.display_name,
        "followers": {"href": None, "total": person.followers},
        "images": images(person),
        **links("user", person.id),
    }
    return jsonify(profile)


@api.get("/users/<person_id>/playlists")
def show_playlists(person_id: str) -> Response:
    """Return a user's playlists: of other users, and without the scope, the public ones."""
    person = _named(person_id)
    return playlists_of(person, own=person.account_id == g.token.grant.person)


@api.post("/users/<person_id>/playlists")
@needs(*MODIFY)
def create_playlist_of(person_id: str) -> tuple[Response, int]:
    """Create a playlist of the current user."""
    if person_id != caller().id:
        raise ApiError(403, "You cannot create a playlist for another user")
    return create_playlist()
