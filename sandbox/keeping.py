"""Keeping what people have agreed to from one run to the next, in a file.

An app under development keeps its refresh tokens; a Spotify that forgot them with every restart
would look to it like one where everybody had removed the app.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox.grants import AccessToken, Grant, Grants, RefreshToken
from sandbox.state import Sandbox


def save(state: Sandbox, path: Path) -> None:
    """Write who agreed to what, with the tokens and the signed-in browsers, for the owner's eyes only."""
    with state.lock:
        kept = {
            "people": {person.account_id: person.id for person in state.people.values()},
            "signed_in": state.signed_in,
            "agreed": {person: sorted(scopes) for person, scopes in state.grants.agreements.items()},
            "grants": [_as_plain(grant) for grant in state.grants.all],
        }
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(beside, path)  # noqa: PTH105 - whole or not at all


def load(state: Sandbox, path: Path) -> None:
    """Take up what `save` wrote. Nothing there: nothing to take up.

    Raises:
        ValueError: the file is not one of ours.
    """
    if not path.exists():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        with state.lock:
            state.grants = _as_grants(kept["grants"], kept["agreed"])
            state.signed_in = dict(kept["signed_in"])
            for account_id, person_id in kept["people"].items():
                state.people[account_id].id = person_id
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); delete it to start over"
        ) from error


def _as_plain(grant: Grant) -> dict[str, Any]:
    return {
        "person": grant.person,
        "scopes": list(grant.scopes),
        "authorized_at": grant.authorized_at.isoformat(),
        "public": grant.public,
        "revoked": grant.revoked,
        "refresh_tokens": [{"value": t.value, "replaced": t.replaced} for t in grant.refresh_tokens],
        "access_tokens": [
            {"value": t.value, "expires_at": t.expires_at.isoformat(), "ended": t.ended}
            for t in grant.access_tokens
        ],
    }


def _as_grants(kept: list[dict[str, Any]], agreed: dict[str, list[str]]) -> Grants:
    grants = Grants()
    grants.agreements = {person: set(scopes) for person, scopes in agreed.items()}
    for plain in kept:
        began = datetime.fromisoformat(plain["authorized_at"])
        grant = grants.open(plain["person"], tuple(plain["scopes"]), began, plain["public"])
        grant.revoked = plain["revoked"]
        for one in plain["refresh_tokens"]:
            refresh = RefreshToken(one["value"], grant, one["replaced"])
            grant.refresh_tokens.append(refresh)
            grants.refresh_tokens[refresh.value] = refresh
        for one in plain["access_tokens"]:
            access = AccessToken(one["value"], grant, datetime.fromisoformat(one["expires_at"]), one["ended"])
            grant.access_tokens.append(access)
            grants.access_tokens[access.value] = access
    return grants
