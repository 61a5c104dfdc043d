"""`/_sandbox/applications`: applications for tests, many at once if need be.

GET    applications                all applications, with their secrets
POST   applications                creates {"count": n} (1), each with the other members of the body:
                                   name, description, redirect_uris (those of the first application), owner
                                   (a person's id), quota ("development" or "extended"), users (up to four
                                   email addresses), client_id and client_secret (for one), and seed: the
                                   body of `POST /_sandbox/seed`, with which each gets people and tokens
PATCH  applications/<client id>    changes name, description, redirect_uris, quota, users, or client_secret
DELETE applications/<client id>    deletes it
POST   applications/<client id>/revoke   ends all of its grants
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, abort, jsonify

from sandbox.applications import Application, new_credential, set_members
from sandbox.context import sandbox
from sandbox.control import body_members, reject_cross_site_requests, respond_to_error
from sandbox.seeding import MEMBERS, SeedRequest, parse_seed_request, seed
from sandbox.settings import BadRequestBody, is_whole
from sandbox.state import Sandbox

application_control = Blueprint("application_control", __name__, url_prefix="/_sandbox/applications")
application_control.before_request(reject_cross_site_requests)
application_control.register_error_handler(BadRequestBody, respond_to_error)

MOST = 1000
_CHANGEABLE = ["client_secret", "description", "name", "quota", "redirect_uris", "users"]
_CREATABLE = sorted([*_CHANGEABLE, "client_id", "count", "owner", "seed"])
_SEEDABLE = [name for name in MEMBERS if name != "client_id"]


@application_control.get("")
def show_applications() -> Response:
    """Return all applications."""
    state = sandbox()
    return jsonify(applications=[_as_json(state, application) for application in state.applications])


@application_control.post("")
def create_applications() -> tuple[Response, int]:
    """Create applications. The response has their secrets, and the tokens of their people."""
    state = sandbox()
    members = body_members(_CREATABLE)
    count, owner = members.pop("count", 1), members.pop("owner", None)
    if not isinstance(count, int) or not is_whole(count, 1, MOST):
        raise BadRequestBody(f"count must be 1 to {MOST}")
    if count > 1 and members.keys() & {"client_id", "client_secret"}:
        raise BadRequestBody("client_id and client_secret are for one application")
    requested = _seed_request(members.pop("seed", None), state)
    account_id = _owner(state, owner, seeded=requested is not None)
    created = []
    for _ in range(count):
        application = _build(state, members, account_id)
        if requested:
            application.require_room_for(requested.count)
        state.applications.add(application)
        people = {"people": seed(state, application, requested)} if requested else {}
        created.append(_as_json(state, application) | people)
    return jsonify(applications=created), 201


def _seed_request(body: object, state: Sandbox) -> SeedRequest | None:
    if body is None:
        return None
    if not isinstance(body, dict) or body.keys() - set(_SEEDABLE):
        raise BadRequestBody("seed must be a JSON object", _SEEDABLE)
    return parse_seed_request(body, state.clock.now())


def _owner(state: Sandbox, person_id: object, *, seeded: bool) -> str:
    """Return the owner's account id. By default, it is a seeded person, or else the first of all people."""
    if person_id is None:
        return "" if seeded else state.people.defaults[0].account_id
    person = state.people.named(person_id) if isinstance(person_id, str) else None
    if person is None:
        raise BadRequestBody("owner must be a person's id")
    return person.account_id


def _build(state: Sandbox, members: dict[str, Any], owner: str) -> Application:
    application = Application(
        client_id=new_credential(),
        secret=new_credential(),
        redirect_uris=state.applications.first.redirect_uris,
        name="Seeded app",
        owner=owner,
    )
    set_members(application, _renamed(members))
    return application


def _renamed(members: dict[str, Any]) -> dict[str, Any]:
    return {("secret" if name == "client_secret" else name): value for name, value in members.items()}


def _as_json(state: Sandbox, application: Application) -> dict[str, Any]:
    return application.as_json(state.people.id_of(application.owner))


def _application(client_id: str) -> Application:
    application = sandbox().applications.get(client_id)
    if application is None:
        abort(404)
    return application


@application_control.patch("/<client_id>")
def change_application(client_id: str) -> Response:
    """Change the application, such as its secret: the old one then no longer works."""
    application = _application(client_id)
    set_members(application, _renamed(body_members(_CHANGEABLE)))
    return jsonify(_as_json(sandbox(), application))


@application_control.delete("/<client_id>")
def delete_application(client_id: str) -> tuple[str, int]:
    """Delete the application: its client id is then unknown."""
    sandbox().applications.remove(_application(client_id))
    return "", 204


@application_control.post("/<client_id>/revoke")
def revoke_all(client_id: str) -> Response:
    """End all refresh tokens of the application. Access tokens stay valid until they expire."""
    return jsonify(revoked=sandbox().grants.revoke(client_id=_application(client_id).client_id))
