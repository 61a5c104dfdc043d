"""Thousands of people who have already agreed, for tests with many connections.

`POST /_sandbox/seed` creates them. Each has one grant, as if made with the client secret, and the response
contains raw tokens, which a test puts into the product's database itself. They can do whatever the others
can, but no page lists them, and `--keep` does not save them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.people import Person
from sandbox.scopes import IN_WORDS
from sandbox.settings import BadRequestBody, is_whole
from sandbox.state import Sandbox

MOST = 20_000
MEMBERS = ["authorized_at", "count", "scopes"]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class SeedRequest:
    """How many people to create, and with which tokens."""

    count: int
    scopes: tuple[str, ...]
    """What each person agreed to. The setting `granted_scopes` applies as usual."""
    authorized_at: datetime
    """When they agreed: the start of the six months of the refresh tokens."""


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
    return SeedRequest(count, tuple(dict.fromkeys(scopes)), _moment(members.get("authorized_at"), now))


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


def seed(state: Sandbox, request: SeedRequest) -> list[dict[str, Any]]:
    """Create people, and return the id and tokens of each."""
    scopes, lifetime = state.settings.granted(request.scopes), state.settings.expires_in
    expires_at = state.clock.now() + timedelta(seconds=lifetime)
    return [
        {
            **_tokens(state, person, scopes, request.authorized_at, expires_at),
            "expires_in": lifetime,
            "scope": " ".join(sorted(scopes)),
        }
        for person in state.people.seed(request.count)
    ]


def _tokens(
    state: Sandbox, person: Person, scopes: tuple[str, ...], authorized_at: datetime, expires_at: datetime
) -> dict[str, str]:
    grants = state.grants
    grants.agreements[person.account_id] = set(scopes)
    grant = grants.open(person.account_id, scopes, authorized_at, public=False)
    return {
        "id": person.id,
        "account_id": person.account_id,
        "refresh_token": grants.issue_refresh_token(grant).value,
        "access_token": grants.issue_access_token(grant, expires_at).value,
    }
