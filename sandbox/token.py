"""POST /api/token: exchanges codes and refresh tokens for access tokens.

Every error is a 400 in the OAuth format, including errors about the client.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from sandbox.context import sandbox
from sandbox.credentials import read_credentials
from sandbox.grants import Code, Grant, short_id
from sandbox.journal import Call
from sandbox.state import Sandbox

token = Blueprint("token", __name__)

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class TokenError(Exception):
    """An OAuth error: the code, and Spotify's description if it sends one."""

    def __init__(self, error: str, description: str | None = None) -> None:
        super().__init__(error)
        self.body = {"error": error} | ({"error_description": description} if description else {})


@token.errorhandler(TokenError)
def respond_to_error(error: TokenError) -> tuple[Response, int]:
    """Return the error in the OAuth format."""
    return jsonify(error.body), 400


@token.after_request
def add_headers(response: Response) -> Response:
    """Set cookies, as Spotify does. A backend should not send them back."""
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie("sp_tr", "false", max_age=86400, samesite="Lax")
    response.set_cookie("__Host-device_id", "sandbox", secure=True, httponly=True, samesite="Lax")
    return response


@token.post("/api/token")
def issue_token() -> Response:
    """Issue an access token for a code, a refresh token, or client credentials."""
    grant_type = request.form.get("grant_type")
    if not grant_type:
        raise TokenError("unsupported_grant_type", "grant_type parameter is missing")
    issue = {
        "authorization_code": _exchange_code,
        "refresh_token": _refresh,
        "client_credentials": _client_credentials,
    }.get(grant_type)
    if issue is None:
        raise TokenError("unsupported_grant_type", f"grant_type {grant_type} is not supported")
    return jsonify(issue(sandbox(), _authenticate_client()))


@dataclass(frozen=True)
class _Client:
    id: str
    with_secret: bool
    """False if it sent only its id, as public clients do."""


def _authenticate_client() -> _Client:
    """Check the client's credentials, sent by Basic authentication or in the body.

    Raises:
        TokenError: `invalid_client`, as a 400.
    """
    given = read_credentials(request)
    if given and given.client_id is None:
        raise TokenError("invalid_client")
    application = sandbox().applications.get(given.client_id) if given else None
    if given is None or application is None:
        raise TokenError("invalid_client", "Invalid client")
    if given.secret is None:
        return _Client(application.client_id, with_secret=False)
    if not hmac.compare_digest(given.secret.encode(), application.secret.encode()):
        raise TokenError("invalid_client", "Invalid client secret")
    return _Client(application.client_id, with_secret=True)


def _required(name: str) -> str:
    value = request.form.get(name)
    if not value:
        raise TokenError("invalid_request", f"{name} must be supplied")
    return value


def _exchange_code(state: Sandbox, client: _Client) -> dict[str, Any]:
    code = state.grants.codes.get(_required("code"))
    redirect_uri = _required("redirect_uri")
    if code is None or code.used or code.client_id != client.id:
        raise TokenError("invalid_grant", "Invalid authorization code")
    if code.is_expired(state.clock.now()):
        raise TokenError("invalid_grant", "Authorization code expired")
    if redirect_uri != code.redirect_uri:
        raise TokenError("invalid_grant", "Invalid redirect URI")
    _check_verifier(code, client.with_secret)
    code.used = True
    grant = state.grants.open(
        client.id, code.person, code.scopes, code.issued_at, public=not client.with_secret
    )
    return _tokens(state, grant, refreshable=True)


def _check_verifier(code: Code, with_secret: bool) -> None:
    """Check PKCE: required without the secret, and enforced with it if a challenge was sent."""
    verifier = request.form.get("code_verifier")
    if code.challenge is None:
        if not with_secret:
            raise TokenError("invalid_client", "Invalid client secret")
        if verifier is not None:
            raise TokenError("invalid_grant", "code_verifier was incorrect")
        return
    if verifier is None:
        raise TokenError("invalid_request", "code_verifier required")
    if not _VERIFIER.fullmatch(verifier):
        raise TokenError("invalid_grant", "code_verifier was invalid")
    digest = hashlib.sha256(verifier.encode()).digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != code.challenge:
        raise TokenError("invalid_grant", "code_verifier was incorrect")


def _refresh(state: Sandbox, client: _Client) -> dict[str, Any]:
    presented = state.grants.refresh_tokens.get(_required("refresh_token"))
    if presented is None or presented.grant.client_id != client.id:
        raise TokenError("invalid_grant", "Invalid refresh token")
    if not client.with_secret and not presented.grant.public:
        raise TokenError("invalid_client", "Invalid client secret")
    now = state.clock.now()
    if presented.is_ended(now, state.settings.rotation_grace_s):
        raise TokenError("invalid_grant", "Refresh token revoked")
    if presented.is_aged(now):
        raise TokenError("invalid_grant", f"Refresh token {state.settings.six_month_wording}")
    # A caller with a replaced token did not get its successor, so issue another one.
    rotates = state.settings.rotates(public=presented.grant.public) or presented.replaced_at is not None
    if rotates:
        # The first replacement counts: using the grace period does not extend it.
        presented.replaced_at = presented.replaced_at or now
    return _tokens(state, presented.grant, refreshable=rotates)


def _client_credentials(state: Sandbox, client: _Client) -> dict[str, Any]:
    if not client.with_secret:
        raise TokenError("invalid_client", "Invalid client secret")
    grant = state.grants.open(client.id, None, (), state.clock.now(), public=False)
    return _tokens(state, grant, refreshable=False)


def _tokens(state: Sandbox, grant: Grant, *, refreshable: bool) -> dict[str, Any]:
    """Issue the tokens of a response, with or without a new refresh token.

    `scope` is omitted if no scope was requested or granted. The journal is updated here, because the
    response may still be lost.
    """
    call: Call = g.call
    lifetime = state.settings.expires_in
    access_token = state.grants.issue_access_token(grant, state.clock.now() + timedelta(seconds=lifetime))
    call.grant, call.issued_access_token_id = grant.number, short_id(access_token.value)
    members = {"access_token": access_token.value, "token_type": "Bearer", "expires_in": lifetime}
    if grant.scopes:
        members["scope"] = " ".join(sorted(grant.scopes))
    if refreshable:
        refresh_token = state.grants.issue_refresh_token(grant)
        call.issued_refresh_token_id = short_id(refresh_token.value)
        members["refresh_token"] = refresh_token.value
    return members
