"""Responses of a failing Spotify, verbatim where its wording is known."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flask import Response

if TYPE_CHECKING:
    from sandbox.faults import Fault

TRANSPORT = (
    "changed_members",
    "close",
    "cut_body",
    "drip",
    "gzip_bomb",
    "huge_body",
    "rate_limited",
    "redirect_302",
    "redirect_307",
)
JSON, TEXT, HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"
DRIP_S = 60.0
DRIP_EVERY_S = 0.1
CHUNK = 64 * 1024

_GOOGLE_502 = (
    "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Error 502 (Server Error)!!1</title>"
    "<p><b>502.</b> <ins>Server Error</ins><p>The server encountered a temporary error. "
    "Please try again in 30 seconds.</html>"
)
_ENVOY = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
_NO_PREMIUM_OWNER = (
    "Active premium subscription required for the owner of the app. When the subscription status "
    "changes, it can take a few hours before requests are allowed again."
)
_NOT_REGISTERED_2026 = (
    "The user is not registered for this application. "
    "Please check your settings on https://developer.spotify.com/dashboard."
)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _oauth(error: str, description: str | None = None) -> tuple[int, str, str]:
    body = {"error": error} if description is None else {"error": error, "error_description": description}
    return 400, JSON, _json(body)


def _regular(status: int, message: str, reason: str | None = None) -> tuple[int, str, str]:
    return status, JSON, _json({"error": error_members(status, message, reason)})


def error_members(status: int, message: str, reason: str | None = None) -> dict[str, object]:
    """Return the inside of the Web API's regular error object."""
    members: dict[str, object] = {"status": status, "message": message}
    return members if reason is None else {**members, "reason": reason}


_OUTAGES: dict[str, tuple[int, str, str]] = {
    "google_502": (502, HTML, _GOOGLE_502),
    "envoy_503": (503, TEXT, _ENVOY),
    "empty_503": (503, TEXT, ""),
    "html_503": (503, HTML, "<html><head><title>503</title></head><body>Service Unavailable</body></html>"),
    "json_502": _regular(502, "Bad gateway."),
    "empty_504": (504, TEXT, ""),
    "json_500": _regular(500, "Internal server error"),
    "server_error": (500, JSON, _json({"error": "server_error"})),
}
_SPOILT: dict[str, tuple[int, str, str]] = {
    "truncated_json": (200, JSON, '{"access_token":"BQ'),
    "no_access_token": (200, JSON, _json({"token_type": "Bearer", "expires_in": 3600})),
    "wrong_types": (
        200,
        JSON,
        _json(
            {
                "access_token": 17,
                "token_type": ["Bearer"],
                "expires_in": "soon",
                "refresh_token": {},
                "scope": 3,
            }
        ),
    ),
    "json_list": (200, JSON, "[]"),
    "html_200": (200, HTML, "<html><body>Welcome to the hotel's network</body></html>"),
    "empty_200": (200, JSON, ""),
}
_TOKEN_ERRORS: dict[str, tuple[int, str, str]] = {
    "false_invalid_grant": _oauth("invalid_grant", "Refresh token revoked"),
    "invalid_code": _oauth("invalid_grant", "Invalid authorization code"),
    "code_expired": _oauth("invalid_grant", "Authorization code expired"),
    "invalid_redirect_uri": _oauth("invalid_grant", "Invalid redirect URI"),
    "verifier_incorrect": _oauth("invalid_grant", "code_verifier was incorrect"),
    "invalid_refresh_token": _oauth("invalid_grant", "Invalid refresh token"),
    "refresh_token_revoked": _oauth("invalid_grant", "Refresh token revoked"),
    "refresh_token_expired": _oauth("invalid_grant", "Refresh token expired"),
    "invalid_grant_bare": _oauth("invalid_grant"),
    "invalid_client": _oauth("invalid_client", "Invalid client"),
    "invalid_client_secret": _oauth("invalid_client", "Invalid client secret"),
    "invalid_client_bare": _oauth("invalid_client"),
    "unauthorized_client": _oauth("unauthorized_client"),
    "grant_type_missing": _oauth("unsupported_grant_type", "grant_type parameter is missing"),
    "unsupported_grant_type": _oauth("unsupported_grant_type", "grant_type is not supported"),
    "code_missing": _oauth("invalid_request", "code must be supplied"),
    "refresh_token_missing": _oauth("invalid_request", "refresh_token must be supplied"),
}
_API_ERRORS: dict[str, tuple[int, str, str]] = {
    "unauthorized_new": _regular(401, "Missing/invalid/expired access token"),
    "unauthorized_expired": _regular(401, "The access token expired"),
    "unauthorized_invalid": _regular(401, "Invalid access token"),
    "unauthorized_no_token": _regular(401, "No token provided"),
    "unauthorized_missing": _regular(401, "Access token missing"),
    "permissions_missing": _regular(401, "Permissions missing"),
    "bearer_only": _regular(400, "Only valid bearer authentication supported"),
    "insufficient_scope": _regular(403, "Insufficient client scope"),
    "forbidden": _regular(403, "Forbidden"),
    "not_registered": (403, TEXT, "User not registered in the Developer Dashboard"),
    "not_registered_2024": (
        403,
        TEXT,
        "Check settings on developer.spotify.com/dashboard, the user may not be registered.",
    ),
    "not_registered_2026": (
        403,
        TEXT,
        _NOT_REGISTERED_2026,
    ),
    "owner_not_premium": (403, TEXT, _NO_PREMIUM_OWNER),
    "premium_required": _regular(403, "Player command failed: Premium required", "PREMIUM_REQUIRED"),
    "restriction_violated": _regular(403, "Player command failed: Restriction violated", "UNKNOWN"),
    "no_active_device": _regular(404, "Player command failed: No active device found", "NO_ACTIVE_DEVICE"),
    "device_not_found": _regular(404, "Device not found"),
    "not_found": _regular(404, "Resource not found"),
    "no_content": (204, JSON, ""),
    # Some commands respond like this since 2024. The content type is wrong: this is not JSON.
    "bare_word": (200, JSON, "q7RtZ0"),
}
RESPONSES = _OUTAGES | _SPOILT | _TOKEN_ERRORS | _API_ERRORS

_RATE_LIMITS: dict[str, tuple[int, str, str]] = {
    "text": (429, TEXT, "Too many requests"),
    "json": _regular(429, "API rate limit exceeded"),
    "quota": _regular(429, "Too many requests", "QUOTA_EXCEEDED"),
    "empty": (429, TEXT, ""),
}
_CHALLENGES = {
    "unauthorized_new": ("invalid_token", "The access token expired"),
    "unauthorized_expired": ("invalid_token", "The access token expired"),
    "unauthorized_invalid": ("invalid_token", "Invalid access token"),
    "unauthorized_no_token": ("missing_token", "No token provided"),
    "unauthorized_missing": ("missing_token", "No token provided"),
}


def challenge(error: str, description: str) -> str:
    """Return the WWW-Authenticate value that api.spotify.com sends."""
    return f'Bearer realm="spotify", error="{error}", error_description="{description}"'


def fixed_response(kind: str) -> Response:
    """Return the response of a kind that needs no options."""
    return _build(RESPONSES[kind])


def outage() -> Response:
    """Return the 502 of Google's load balancer in front of Spotify."""
    return fixed_response("google_502")


def faulty_response(fault: Fault, normal: Response | None) -> Response:
    """Return what the caller gets instead of the `normal` response (None if the call has had no effect)."""
    if fault.kind in ("close", "timeout"):
        return Response(_drop())
    response = _make_response(fault, normal)
    if fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    if fault.kind in _CHALLENGES:
        response.headers["WWW-Authenticate"] = challenge(*_CHALLENGES[fault.kind])
    return response


def _make_response(fault: Fault, normal: Response | None) -> Response:
    original = normal.get_data() if normal else b'{"access_token":"BQ-never-issued"}'
    match fault.kind:
        case "changed_members":
            return Response(_changed(original, fault.members), content_type=JSON)
        case "rate_limited":
            return _build(_RATE_LIMITS[fault.body])
        case "redirect_302" | "redirect_307":
            return Response("", int(fault.kind[-3:]), {"Location": fault.location})
        case "drip":
            lasts = DRIP_S if fault.seconds is None else fault.seconds
            return Response(_drip_body(lasts, original), 200, content_type=JSON)
        case "huge_body":
            return Response(_huge_body(fault.bytes), 200, content_type=JSON)
        case "gzip_bomb":
            packed = gzip.compress(b'"' + b"A" * (fault.bytes - 2) + b'"', 1)
            return Response(packed, 200, {"Content-Encoding": "gzip"}, content_type=JSON)
        case "cut_body":
            length = {"Content-Length": str(len(original))}
            return Response(_cut(original), 200, length, content_type=JSON)
        case "truncated_json" if normal:
            return Response(original[: len(original) // 2], 200, content_type=JSON)
    return _build(RESPONSES[fault.kind])


def _build(parts: tuple[int, str, str]) -> Response:
    status, content_type, body = parts
    return Response(body, status, content_type=content_type)


def _changed(original: bytes, members: dict[str, Any]) -> str:
    """Return the response with other values for some members of its JSON object."""
    try:
        value = json.loads(original)
    except ValueError:
        value = None
    return _json({**value, **members} if isinstance(value, dict) else members)


def _drop() -> Iterator[bytes]:
    """Fail before the first byte of the body, which makes the server close the connection."""
    raise ConnectionAbortedError
    yield b""


def _cut(original: bytes) -> Iterator[bytes]:
    yield original[: max(1, len(original) // 2)]
    raise ConnectionAbortedError


def _drip_body(seconds: float, original: bytes) -> Iterator[bytes]:
    """Yield spaces, slowly but never slowly enough for a read timeout; then the response."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield b" "
        time.sleep(DRIP_EVERY_S)
    yield original


def _huge_body(size: int) -> Iterator[bytes]:
    yield b'{"access_token":"'
    for start in range(0, size, CHUNK):
        yield b"A" * min(CHUNK, size - start)
    yield b'"}'
