"""`/_sandbox/`: settings, clock, people, faults, and journal, for tests and for the page at `/`.

POST   reset                       restore the initial state
GET    settings                    the settings; PATCH changes some: see `settings.Settings`
GET    clock                       POST {"advance": s} or {"offset": s} moves it
GET    people                      all people
POST   people/<id>/revoke          remove the apps on the person's behalf, or the one with {"client_id": ...}
POST   people/<id>/rename          {"id": ...}
POST   seed                        {"count": n}: n more people with tokens: see `seeding`
GET    applications                POST creates some: see `application_control`
POST   expire-access-tokens        expire all access tokens
GET    faults                      POST adds one: see `faults.Fault`; DELETE removes all, or ?client_id=
POST   faults/release              release held calls
GET    journal                     ?after=<n>, path, grant_type, client_id filter; DELETE clears it
GET    tokens                      all grants with their tokens, named by short ids
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, jsonify, request
from werkzeug.exceptions import BadRequest, Forbidden

from sandbox.clock import as_text
from sandbox.context import sandbox
from sandbox.faults import parse_fault
from sandbox.people import Person
from sandbox.seeding import MEMBERS, application_to_seed, parse_seed_request, seed
from sandbox.settings import BadRequestBody

control = Blueprint("control", __name__, url_prefix="/_sandbox")

FARTHEST_S = 100 * 366 * 86400
_NUMBER = re.compile(r"[0-9]{1,15}")


@control.before_request
def reject_cross_site_requests() -> None:
    """Keep pages of other sites from controlling the sandbox through a browser."""
    require_loopback()
    if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        raise Forbidden
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Forbidden


def require_loopback() -> None:
    """Allow loopback callers only.

    The Host header is checked too: with DNS rebinding, a foreign name resolves to 127.0.0.1.
    """
    host = request.host.rpartition(":")[0] if ":" in request.host.rpartition("]")[2] else request.host
    names_loopback = host == "localhost" or _is_loopback(host.strip("[]"))
    if not _is_loopback(request.remote_addr or "") or not names_loopback:
        raise Forbidden


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@control.errorhandler(BadRequestBody)
def respond_to_error(error: BadRequestBody) -> tuple[Response, int]:
    """Return what is wrong with the body, as a 422."""
    body: dict[str, Any] = {"message": error.message}
    if error.allowed is not None:
        body["allowed"] = error.allowed
    return jsonify(body), 422


def body_members(allowed: list[str] | None = None) -> dict[str, Any]:
    """Return the JSON object in the body.

    Raises:
        BadRequestBody: If it is not an object, or has a member that is not allowed.
    """
    try:
        body = request.get_json()
    except (BadRequest, RecursionError) as error:
        raise BadRequestBody("the body must be JSON") from error
    if not isinstance(body, dict):
        raise BadRequestBody("the body must be a JSON object", allowed)
    for name in body:
        if allowed is not None and name not in allowed:
            raise BadRequestBody(f"unknown member: {name}", allowed)
    return body


@control.post("/reset")
def reset() -> tuple[str, int]:
    """Restore the initial state."""
    sandbox().reset()
    return "", 204


@control.get("/settings")
def show_settings() -> Response:
    """Return the settings."""
    return jsonify(sandbox().settings.as_json())


@control.patch("/settings")
def change_settings() -> Response:
    """Change some settings."""
    state = sandbox()
    state.settings.patch(body_members(), state.people)
    return show_settings()


@control.post("/clock")
def move_clock() -> Response:
    """Move the clock."""
    members = body_members(["advance", "offset"])
    if len(members) != 1:
        raise BadRequestBody("exactly one of advance and offset is needed", ["advance", "offset"])
    ((name, seconds),) = members.items()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not abs(seconds) < FARTHEST_S:
        raise BadRequestBody(f"{name} must be a number of seconds")
    clock = sandbox().clock
    (clock.advance if name == "advance" else clock.set_offset)(seconds)
    return show_clock()


@control.get("/clock")
def show_clock() -> Response:
    """Return the clock's time and offset."""
    clock = sandbox().clock
    return jsonify(now=as_text(clock.now()), offset=clock.offset)


@control.get("/people")
def show_people() -> Response:
    """Return all people."""
    state = sandbox()
    return jsonify(people=state.people_as_json(state.people))


def _person(person_id: str) -> Person:
    person = sandbox().people.named(person_id)
    if person is None:
        abort(404)
    return person


@control.post("/people/<person_id>/revoke")
def revoke(person_id: str) -> Response:
    """Remove the apps: refresh tokens end at once, access tokens stay valid until they expire."""
    client_id = body_members(["client_id"]).get("client_id") if request.content_length else None
    if not isinstance(client_id, str | None):
        raise BadRequestBody("client_id must be a string")
    person = _person(person_id)
    return jsonify(revoked=sandbox().grants.revoke(person=person.account_id, client_id=client_id))


@control.post("/people/<person_id>/rename")
def rename(person_id: str) -> Response:
    """Give a person a new id."""
    new_id = body_members(["id"]).get("id")
    if not isinstance(new_id, str):
        raise BadRequestBody("id must be a string", ["id"])
    sandbox().rename(_person(person_id), new_id)
    return show_people()


@control.post("/seed")
def seed_people() -> tuple[Response, int]:
    """Create people who have already agreed. The response has their tokens in plain text, for the test."""
    state = sandbox()
    members = body_members(MEMBERS)
    requested = parse_seed_request(members, state.clock.now())
    return jsonify(people=seed(state, application_to_seed(members, state), requested)), 201


@control.post("/expire-access-tokens")
def expire_access_tokens() -> Response:
    """Expire all access tokens."""
    state = sandbox()
    return jsonify(expired=state.grants.end_access_tokens(state.clock.now()))


@control.post("/faults")
def add_fault() -> tuple[Response, int]:
    """Add a fault."""
    fault = parse_fault(body_members())
    sandbox().faults.add(fault)
    return show_faults(), 201


@control.get("/faults")
def show_faults() -> Response:
    """Return the faults."""
    return jsonify(sandbox().faults.as_json())


@control.delete("/faults")
def clear_faults() -> tuple[str, int]:
    """Remove all faults and release held calls, or remove the faults of one application."""
    client_id = _query(["client_id"]).get("client_id")
    faults = sandbox().faults
    if client_id is None:
        faults.clear()
    else:
        faults.remove_for(client_id)
    return "", 204


@control.post("/faults/release")
def release() -> Response:
    """Release every held call."""
    return jsonify(released=sandbox().faults.release())


@control.get("/journal")
def show_journal() -> Response:
    """Return all recorded calls, or those that the query selects.

    `forgotten` is the number of the last call that was dropped. A call in progress is not returned again to
    a caller who asks for calls `after` it: read it again to see how it ended.
    """
    query = _query(["after", "path", "grant_type", "client_id"])
    after = query.pop("after", "0")
    if not _NUMBER.fullmatch(after):
        raise BadRequestBody("after must be the number of a call")
    journal = sandbox().journal
    calls = [call.as_json() for call in journal.calls(int(after), **query)]
    return jsonify(calls=calls, forgotten=journal.forgotten())


def _query(allowed: list[str]) -> dict[str, str]:
    """Return the parameters of the query.

    Raises:
        BadRequestBody: If one is unknown or repeated.
    """
    for name, values in request.args.lists():
        if name not in allowed:
            raise BadRequestBody(f"unknown parameter: {name}", allowed)
        if len(values) > 1:
            raise BadRequestBody(f"{name} is given twice")
    return request.args.to_dict()


@control.delete("/journal")
def clear_journal() -> tuple[str, int]:
    """Clear the journal."""
    sandbox().journal.clear()
    return "", 204


@control.get("/tokens")
def show_tokens() -> Response:
    """Return all grants with their tokens as short ids."""
    state = sandbox()
    now: datetime = state.clock.now()
    return jsonify(grants=state.grants.as_json(now, state.settings.rotation_grace_s, state.people))
