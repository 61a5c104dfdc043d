"""`/_sandbox/`: switches, clock, people, faults and journal, for tests and for the page at `/`.

POST   reset                       as right after the start
GET    settings                    the switches; PATCH changes some: see `settings.Settings`
GET    clock                       POST {"advance": s} or {"offset": s} moves it
GET    people                      everybody
POST   people/<id>/revoke          the person removes the app
POST   people/<id>/rename          {"id": ...}
POST   seed                        {"count": n}: n more people with tokens: see `seeding`
POST   expire-access-tokens        none works any longer
GET    faults                      POST adds one: see `faults.Fault`; DELETE removes all
POST   faults/release              held calls go on
GET    journal                     ?after=<n>, path and grant_type pick calls; DELETE empties it
GET    tokens                      every grant with its tokens, named by short ids
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort, jsonify, request
from werkzeug.exceptions import BadRequest, Forbidden

from sandbox.clock import as_text
from sandbox.context import sandbox
from sandbox.faults import parse_fault
from sandbox.people import Person
from sandbox.seeding import MEMBERS, parse_seed_request, seed
from sandbox.settings import BadRequestBody

control = Blueprint("control", __name__, url_prefix="/_sandbox")

FARTHEST_S = 100 * 366 * 86400
_NUMBER = re.compile(r"[0-9]{1,15}")


@control.before_request
def reject_cross_site_requests() -> None:
    """No page of another site may steer the sandbox through a browser."""
    require_loopback()
    if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        raise Forbidden


def require_loopback() -> None:
    """Loopback callers only.

    The Host header is looked at as well: a name that was rebound to 127.0.0.1 is still a name.
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
def refuse(error: BadRequestBody) -> tuple[Response, int]:
    body: dict[str, Any] = {"message": error.message}
    if error.allowed is not None:
        body["allowed"] = error.allowed
    return jsonify(body), 422


def _members(allowed: list[str] | None = None) -> dict[str, Any]:
    """The JSON object of the body.

    Raises:
        BadRequestBody: it is none, or has a member that is not allowed.
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
    sandbox().reset()
    return "", 204


@control.get("/settings")
def show_settings() -> Response:
    return jsonify(sandbox().settings.as_json())


@control.patch("/settings")
def change_settings() -> Response:
    state = sandbox()
    state.settings.patch(_members(), state.people)
    return show_settings()


@control.post("/clock")
def move_clock() -> Response:
    members = _members(["advance", "offset"])
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
    clock = sandbox().clock
    return jsonify(now=as_text(clock.now()), offset=clock.offset)


@control.get("/people")
def show_people() -> Response:
    state = sandbox()
    return jsonify(people=state.people_as_json(state.people))


def _person(person_id: str) -> Person:
    person = sandbox().people.named(person_id)
    if person is None:
        abort(404)
    return person


@control.post("/people/<person_id>/revoke")
def revoke(person_id: str) -> Response:
    """The person removes the app: refresh tokens end at once, access tokens live on."""
    return jsonify(revoked=sandbox().grants.revoke(_person(person_id).account_id))


@control.post("/people/<person_id>/rename")
def rename(person_id: str) -> Response:
    new_id = _members(["id"]).get("id")
    if not isinstance(new_id, str):
        raise BadRequestBody("id must be a string", ["id"])
    sandbox().rename(_person(person_id), new_id)
    return show_people()


@control.post("/seed")
def seed_people() -> tuple[Response, int]:
    """Many people who have agreed already, with their tokens as they are: the caller hands them out."""
    state = sandbox()
    wish = parse_seed_request(_members(MEMBERS), state.clock.now())
    return jsonify(people=seed(state, wish)), 201


@control.post("/expire-access-tokens")
def expire_access_tokens() -> Response:
    state = sandbox()
    return jsonify(expired=state.grants.end_access_tokens(state.clock.now()))


@control.post("/faults")
def add_fault() -> tuple[Response, int]:
    fault = parse_fault(_members())
    sandbox().faults.add(fault)
    return show_faults(), 201


@control.get("/faults")
def show_faults() -> Response:
    return jsonify(sandbox().faults.as_json())


@control.delete("/faults")
def clear_faults() -> tuple[str, int]:
    sandbox().faults.clear()
    return "", 204


@control.post("/faults/release")
def release() -> Response:
    """Let every call go on that is parked or held now."""
    return jsonify(released=sandbox().faults.release())


@control.get("/journal")
def show_journal() -> Response:
    """All calls that are kept, or those that the query picks.

    `forgotten` is the number of the last call that is no longer kept. A call that was under way is
    not shown again to somebody who asks for calls `after` it: read it anew to see how it ended.
    """
    query = _query(["after", "path", "grant_type"])
    after = query.pop("after", "0")
    if not _NUMBER.fullmatch(after):
        raise BadRequestBody("after must be the number of a call")
    journal = sandbox().journal
    calls = [call.as_json() for call in journal.calls(int(after), **query)]
    return jsonify(calls=calls, forgotten=journal.forgotten())


def _query(allowed: list[str]) -> dict[str, str]:
    """The parameters of the query.

    Raises:
        BadRequestBody: one is not allowed, or given twice.
    """
    for name, values in request.args.lists():
        if name not in allowed:
            raise BadRequestBody(f"unknown parameter: {name}", allowed)
        if len(values) > 1:
            raise BadRequestBody(f"{name} is given twice")
    return request.args.to_dict()


@control.delete("/journal")
def clear_journal() -> tuple[str, int]:
    sandbox().journal.clear()
    return "", 204


@control.get("/tokens")
def show_tokens() -> Response:
    state = sandbox()
    now: datetime = state.clock.now()
    return jsonify(grants=state.grants.as_json(now, state.settings.rotation_grace_s, state.people))
