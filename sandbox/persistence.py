"""Saving grants to a file between runs.

An app in development keeps its refresh tokens. If the sandbox forgot them on every restart, the app would see
every connection as revoked. Seeded people belong to one test and are not saved.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox.applications import Application
from sandbox.grants import AccessToken, Grant, Grants, RefreshToken
from sandbox.people import Person
from sandbox.state import Sandbox


def save(state: Sandbox, path: Path) -> None:
    """Write grants, tokens, and signed-in browsers to a file that only its owner can read."""
    with state.lock:
        people = {person.account_id: person.id for person in state.people.defaults}
        agreed, grants = state.grants.agreements, state.grants.all
        kept = {
            "people": people,
            "signed_in": {cookie: who for cookie, who in state.signed_in.items() if who in people},
            "applications": _applications_as_json(state),
            "agreed": [[*key, sorted(scopes)] for key, scopes in agreed.items() if key[1] in people],
            "grants": [_grant_as_json(g) for g in grants if g.person is None or g.person in people],
        }
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(beside, path)  # noqa: PTH105 - atomic


def load(state: Sandbox, path: Path) -> None:
    """Restore what `save` wrote. Do nothing if the file does not exist.

    Raises:
        ValueError: If the file is not one of ours.
    """
    if not path.exists():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        with state.lock:
            _restore_applications(state, kept.get("applications", []))
            state.grants = _grants_from_json(
                kept["grants"], kept["agreed"], state.applications.first.client_id
            )
            state.signed_in = dict(kept["signed_in"])
            for account_id, person_id in kept["people"].items():
                state.people.rename(_known(state, account_id), person_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); delete it to start over"
        ) from error


def _known(state: Sandbox, account_id: str) -> Person:
    person = state.people.of_account(account_id)
    if person is None:
        raise KeyError(account_id)
    return person


def _applications_as_json(state: Sandbox) -> list[dict[str, Any]]:
    """Return the applications as they are, without seeded people and what they own."""
    defaults = {person.account_id for person in state.people.defaults}
    seeded = {person.email for person in state.people if person.account_id not in defaults}
    return [
        {**asdict(application), "users": [email for email in application.users if email not in seeded]}
        for application in state.applications
        if application is not state.applications.first and application.owner in defaults
    ]


def _restore_applications(state: Sandbox, kept: list[dict[str, Any]]) -> None:
    """Add the applications. The first one is always as the command line says."""
    for plain in kept:
        if state.applications.get(plain["client_id"]) is None:
            plain["redirect_uris"] = tuple(plain["redirect_uris"])
            state.applications.add(Application(**plain))


def _grant_as_json(grant: Grant) -> dict[str, Any]:
    return {
        "client_id": grant.client_id,
        "person": grant.person,
        "scopes": list(grant.scopes),
        "authorized_at": grant.authorized_at.isoformat(),
        "public": grant.public,
        "revoked": grant.revoked,
        "refresh_tokens": [
            {"value": t.value, "replaced": t.replaced_at is not None} for t in grant.refresh_tokens
        ],
        "access_tokens": [
            {"value": t.value, "expires_at": t.expires_at.isoformat(), "ended": t.ended}
            for t in grant.access_tokens
        ],
    }


def _grants_from_json(kept: list[dict[str, Any]], agreed: Any, first: str) -> Grants:
    """Restore grants. Files from before there were several applications name none: it was the first."""
    grants = Grants()
    if isinstance(agreed, dict):
        agreed = [[first, person, scopes] for person, scopes in agreed.items()]
    grants.agreements = {(client_id, person): set(scopes) for client_id, person, scopes in agreed}
    for plain in kept:
        began = datetime.fromisoformat(plain["authorized_at"])
        client_id = plain.get("client_id", first)
        grant = grants.open(client_id, plain["person"], tuple(plain["scopes"]), began, plain["public"])
        grant.revoked = plain["revoked"]
        for one in plain["refresh_tokens"]:
            # The time of replacement is not saved: the grace period does not survive a restart.
            refresh = RefreshToken(one["value"], grant, began if one["replaced"] else None)
            grant.refresh_tokens.append(refresh)
            grants.refresh_tokens[refresh.value] = refresh
        for one in plain["access_tokens"]:
            access = AccessToken(one["value"], grant, datetime.fromisoformat(one["expires_at"]), one["ended"])
            grant.access_tokens.append(access)
            grants.access_tokens[access.value] = access
    return grants
