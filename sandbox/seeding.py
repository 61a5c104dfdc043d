"""Thousands of people who have already agreed, for tests with many connections.

`POST /_sandbox/seed` creates them. Each has one grant, as if made with the client secret, or with
`{"public": true}` without it, at the first application or the one with `client_id`. If that one is in
development mode, they are added to its users. The response contains raw tokens, which a test puts into the
product's database itself. Seeded people can do whatever the others can, but no page lists them, and `--keep`
does not save them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.applications import DEVELOPMENT, Application
from sandbox.grants import Grant
from sandbox.people import Person
from sandbox.scopes import IN_WORDS
from sandbox.settings import BadRequestBody, is_whole
from sandbox.state import Sandbox

MOST = 20_000
MEMBERS = ["authorized_at", "client_id", "count", "public", "scopes"]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class SeedRequest:
    """How many people to create, and with which tokens."""

    count: int
    scopes: tuple[str, ...]
    """What each person agreed to. The setting `granted_scopes` applies as usual."""
    authorized_at: datetime
    """When they agreed: the start of the six months of the refresh tokens."""
    public: bool
    """Whether they agreed to a public client: one without a secret, with PKCE."""


def application_to_seed(members: dict[str, Any], state: Sandbox) -> Application:
    """Return the application that the body names; by default, the first one.

    Raises:
        BadRequestBody: If there is none with this client id.
    """
    client_id = members.get("client_id", state.applications.first.client_id)
    application = state.applications.get(client_id) if isinstance(client_id, str) else None
    if application is None:
        raise BadRequestBody("client_id must be that of an application")
    return application


def parse_seed_request(members: dict[str, Any], now: datetime) -> SeedRequest:
    """Parse the body. By default, people agreed to all scopes, just now.

    Raises:
        BadRequestBody: If a member is missing or invalid.
    """
    count, scopes = members.get("count"), members.get("scopes", list(IN_WORDS))
    if not isinstance(count, int) or not is_whole(count, 1, MOST):
        raise BadRequestBody(f"count must be 1 to {MOST}")
    if not isinstance(scopes, list) or any(str(scope) not in IN_WORDS for scope in scopes):
        raise BadRequestBody("scopes must be a list of known scopes", list(IN_WORDS))
    public = members.get("public", False)
    if not isinstance(public, bool):
        raise BadRequestBody("public must be true or false")
    return SeedRequest(
        count, tuple(dict.fromkeys(scopes)), _moment(members.get("authorized_at"), now), public
    )


def _moment(value: object, now: datetime) -> datetime:
    if value is None:
        return now
    moment = _parsed(value.upper() if isinstance(value, str) else "")
    if moment is None:
        raise BadRequestBody("authorized_at must be a time as in RFC 3339")
    if moment > now:
        raise BadRequestBody("authorized_at must not be in the future")
    return moment


def _parsed(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if _RFC_3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def seed(state: Sandbox, application: Application, request: SeedRequest) -> list[dict[str, Any]]:
    """Create people who use the application, and return the id and tokens of each.

    Raises:
        BadRequestBody: If the application is in development mode, and they are too many for it.
    """
    application.require_room_for(request.count)
    people = state.people.seed(request.count)
    if application.quota == DEVELOPMENT:
        application.admit(people)
    scopes, lifetime = state.settings.granted(request.scopes), state.settings.expires_in
    expires_at = state.clock.now() + timedelta(seconds=lifetime)
    return [
        {
            **_tokens(state, _open_grant(state, application, person, scopes, request), expires_at),
            "id": person.id,
            "account_id": person.account_id,
            "expires_in": lifetime,
            "scope": " ".join(sorted(scopes)),
        }
        for person in people
    ]


def _open_grant(
    state: Sandbox, application: Application, person: Person, scopes: tuple[str, ...], request: SeedRequest
) -> Grant:
    state.grants.agreements[application.client_id, person.account_id] = set(scopes)
    return state.grants.open(
        application.client_id, person.account_id, scopes, request.authorized_at, request.public
    )


def _tokens(state: Sandbox, grant: Grant, expires_at: datetime) -> dict[str, str]:
    return {
        "refresh_token": state.grants.issue_refresh_token(grant).value,
        "access_token": state.grants.issue_access_token(grant, expires_at).value,
    }
