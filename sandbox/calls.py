"""Classification of calls, for the journal and for faults."""

from __future__ import annotations

import sys
from urllib.parse import parse_qsl

from flask import Request

from sandbox.authorize import COOKIE
from sandbox.credentials import read_credentials
from sandbox.grants import short_id
from sandbox.journal import Call, without_secrets
from sandbox.state import Sandbox

_ACCOUNTS_PATHS = ("/authorize", "/authorize/consent", "/logout", "/api/token")


def is_journaled(path: str) -> bool:
    """Return whether the path belongs to one of Spotify's hosts rather than to the sandbox itself."""
    return path in _ACCOUNTS_PATHS or path == "/v1" or path.startswith("/v1/")


def describe_call(state: Sandbox, request: Request) -> Call:
    """Describe a request for the journal and for faults."""
    call = Call(
        method=request.method,
        path=request.path,
        query=without_secrets(request.query_string.decode("latin-1")),
        # Interned: almost all calls have the same headers, and a journal can be long.
        headers=sorted(sys.intern(name.lower()) for name, _ in request.headers),
        body_bytes=request.content_length or 0,
        targets=frozenset(_targets(request)),
    )
    if request.path == "/api/token":
        _describe_token_call(call, state, request)
    elif request.path.startswith("/v1"):
        _describe_api_call(call, state, request)
    else:
        _describe_visit(call, state, request)
    return call


def _targets(request: Request) -> list[str]:
    path = request.path.removesuffix("/")
    if path == "/api/token":
        kinds = {"refresh_token": ["refresh"], "authorization_code": ["code"]}
        return ["token", *kinds.get(request.form.get("grant_type", ""), [])]
    if path == "/authorize":
        return ["authorize"]
    if not path.startswith("/v1"):
        return []
    is_player = path == "/v1/me/player" or path.startswith("/v1/me/player/")
    is_command = request.method != "GET"
    targets = {"me": path == "/v1/me", "player": is_player, "command": is_command}
    return ["api", *(target for target, applies in targets.items() if applies)]


def _describe_token_call(call: Call, state: Sandbox, request: Request) -> None:
    form, sent = request.form, read_credentials(request)
    call.client_id = sent.client_id if sent else None
    call.grant_type = form.get("grant_type")
    call.client_auth = _client_auth(request)
    owner: str | None = None
    if refresh_token := form.get("refresh_token"):
        call.refresh_token_id = short_id(refresh_token)
        presented = state.grants.refresh_tokens.get(refresh_token)
        if presented:
            owner, call.grant = presented.grant.person, presented.grant.number
    if code := form.get("code"):
        call.code_id = short_id(code)
        issued = state.grants.codes.get(code)
        owner = issued.person if issued else owner
    call.person = state.people.id_of(owner)


def _client_auth(request: Request) -> str:
    if request.headers.get("Authorization", "").lower().startswith("basic "):
        return "basic"
    return "body" if "client_secret" in request.form else "none"


def _describe_api_call(call: Call, state: Sandbox, request: Request) -> None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not value:
        return
    call.access_token_id = short_id(value)
    token = state.grants.access_tokens.get(value)
    call.person = state.people.id_of(token.grant.person if token else None)
    call.client_id = token.grant.client_id if token else None


def _describe_visit(call: Call, state: Sandbox, request: Request) -> None:
    chosen = state.people.named(request.form.get("person", ""))
    person = chosen or state.person_signed_in_with(request.cookies.get(COOKIE))
    call.person = person.id if person else None
    query = request.args if request.method == "GET" else dict(parse_qsl(request.form.get("query", "")))
    call.client_id = query.get("client_id")
