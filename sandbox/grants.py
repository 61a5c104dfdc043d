"""Codes, grants, and tokens."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sandbox.clock import as_text, six_months_after
from sandbox.people import People

CODE_LIFE = timedelta(minutes=10)


def short_id(value: str) -> str:
    """Name a token or code by 16 hex digits of its SHA-256, wherever people may read it."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]


@dataclass
class Code:
    """An authorization code."""

    client_id: str
    person: str
    scopes: tuple[str, ...]
    redirect_uri: str
    challenge: str | None
    issued_at: datetime
    used: bool = False
    value: str = field(default_factory=lambda: f"AQ{secrets.token_urlsafe(150)}")

    def is_expired(self, now: datetime) -> bool:
        """Return whether the code is too old."""
        return now - self.issued_at > CODE_LIFE


@dataclass
class RefreshToken:
    """A refresh token."""

    value: str
    grant: Grant
    replaced_at: datetime | None = None

    def is_aged(self, now: datetime) -> bool:
        """Return whether six months have passed since consent. Refreshing does not extend this."""
        return now >= six_months_after(self.grant.authorized_at)

    def is_ended(self, now: datetime, grace_s: int) -> bool:
        """Return whether the token was revoked, or replaced longer ago than the grace period."""
        # Setting the clock back to before the replacement must not revive the token.
        return self.grant.revoked or (
            self.replaced_at is not None and max(0.0, (now - self.replaced_at).total_seconds()) >= grace_s
        )

    def is_live(self, now: datetime, grace_s: int) -> bool:
        """Return whether the token works."""
        return not (self.is_ended(now, grace_s) or self.is_aged(now))


@dataclass
class AccessToken:
    """An access token. As on Spotify, it outlives a revocation of its grant."""

    value: str
    grant: Grant
    expires_at: datetime
    ended: bool = False

    def is_live(self, now: datetime) -> bool:
        """Return whether the token works."""
        return not self.ended and now < self.expires_at


@dataclass
class Grant:
    """One consent of one person, or (without a person) a client-credentials grant."""

    number: int
    client_id: str
    person: str | None
    scopes: tuple[str, ...]
    authorized_at: datetime
    public: bool
    """Created without the client secret, so it can be refreshed without it."""
    revoked: bool = False
    refresh_tokens: list[RefreshToken] = field(default_factory=list)
    access_tokens: list[AccessToken] = field(default_factory=list)


class Grants:
    """All grants, indexed by token. The caller holds the sandbox's lock."""

    def __init__(self) -> None:
        self.codes: dict[str, Code] = {}
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self.access_tokens: dict[str, AccessToken] = {}
        self.all: list[Grant] = []
        self._by_person: dict[str, list[Grant]] = {}
        self.agreements: dict[tuple[str, str], set[str]] = {}
        """The scopes that people agreed to, by client id and person."""

    def agreed(self, client_id: str, person: str, scopes: tuple[str, ...]) -> bool:
        """Return whether the person has already agreed to all of these scopes."""
        agreed = self.agreements.get((client_id, person))
        return agreed is not None and agreed.issuperset(scopes)

    def issue_code(self, code: Code) -> Code:
        """Record the person's consent and the code for it."""
        self.agreements.setdefault((code.client_id, code.person), set()).update(code.scopes)
        self.codes[code.value] = code
        return code

    def open(
        self,
        client_id: str,
        person: str | None,
        scopes: tuple[str, ...],
        authorized_at: datetime,
        public: bool,
    ) -> Grant:
        """Create a grant."""
        grant = Grant(len(self.all) + 1, client_id, person, scopes, authorized_at, public)
        self.all.append(grant)
        if person is not None:
            self._by_person.setdefault(person, []).append(grant)
        return grant

    def count_active(self, person: str) -> int:
        """Return how many of the person's grants are not revoked."""
        return sum(not grant.revoked for grant in self._by_person.get(person, ()))

    def issue_refresh_token(self, grant: Grant) -> RefreshToken:
        """Issue a refresh token for the grant."""
        token = RefreshToken(f"AQ{secrets.token_urlsafe(96)}", grant)
        grant.refresh_tokens.append(token)
        self.refresh_tokens[token.value] = token
        return token

    def issue_access_token(self, grant: Grant, expires_at: datetime) -> AccessToken:
        """Issue an access token for the grant."""
        token = AccessToken(f"BQ{secrets.token_urlsafe(180)}", grant, expires_at)
        grant.access_tokens.append(token)
        self.access_tokens[token.value] = token
        return token

    def revoke(self, *, person: str | None = None, client_id: str | None = None) -> int:
        """Remove a person's apps, or an app for everyone, or both: one app of one person.

        Codes and refresh tokens end, access tokens live on.

        Returns:
            The number of grants that ended.
        """

        def ends(of: Code | Grant) -> bool:
            return person in (None, of.person) and client_id in (None, of.client_id)

        for key in list(self.agreements):
            if client_id in (None, key[0]) and person in (None, key[1]):
                del self.agreements[key]
        self.codes = {value: code for value, code in self.codes.items() if not ends(code)}
        grants = self.all if person is None else self._by_person.get(person, ())
        ended = [grant for grant in grants if not grant.revoked and ends(grant)]
        for grant in ended:
            grant.revoked = True
        return len(ended)

    def end_access_tokens(self, now: datetime) -> int:
        """End every access token that still works. Returns how many there were."""
        live = [token for token in self.access_tokens.values() if token.is_live(now)]
        for token in live:
            token.ended = True
        return len(live)

    def as_json(self, now: datetime, grace_s: int, people: People) -> list[dict[str, Any]]:
        """Return every grant with its tokens as short ids."""
        return [
            {
                "grant": grant.number,
                "client_id": grant.client_id,
                "person": people.id_of(grant.person),
                "scopes": sorted(grant.scopes),
                "authorized_at": as_text(grant.authorized_at),
                "refresh_tokens": [
                    {"id": short_id(t.value), "live": t.is_live(now, grace_s)} for t in grant.refresh_tokens
                ],
                "access_tokens": [
                    {"id": short_id(t.value), "live": t.is_live(now), "expires_at": as_text(t.expires_at)}
                    for t in grant.access_tokens
                ],
            }
            for grant in self.all
        ]
