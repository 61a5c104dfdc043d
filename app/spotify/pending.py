"""Authorizations under way: what was promised when a person was sent to Spotify.

Each has its own key in Redis, named by a hash of the `state`, and can be taken out once. Keeping
them out of the session means that two tabs cannot overwrite each other's.
"""

import hashlib
import secrets
from typing import Any

import msgspec

from app import sessions
from app.parts import parts
from app.sealing import Unreadable

LIFE_SECONDS = 600


class Pending(msgspec.Struct):
    """Who may finish the authorization, and the PKCE verifier to finish it with (sealed)."""

    session: str
    user_id: int | None
    verifier: bytes


def begin(user_id: int | None) -> str:
    """Start an authorization for this session and user. Returns the URL at Spotify.

    `state` and verifier are 256 random bits each (RFC 9700 sections 2.1 and 2.1.1); the verifier
    never leaves this server.
    """
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    pending = Pending(
        sessions.binding(),
        user_id,
        parts().sealer.seal(verifier, "verifier", _key(state)),
    )
    parts().redis.set(_key(state), msgspec.msgpack.encode(pending), ex=LIFE_SECONDS)
    sessions.start()
    return parts().accounts.authorize_url(state=state, verifier=verifier)


def spend(state: str, user_id: int | None) -> str | None:
    """Take an authorization out, once. Returns its verifier, or None where it does not belong.

    The state dies at first use, whoever presents it (RFC 9700 section 4.2.4).
    """
    raw: Any = parts().redis.getdel(_key(state))
    if raw is None:
        return None
    try:
        pending = msgspec.msgpack.decode(raw, type=Pending)
        verifier = parts().sealer.open(pending.verifier, "verifier", _key(state))
    except (msgspec.MsgspecError, Unreadable):
        return None
    ours = pending.session == sessions.binding() and pending.user_id == user_id
    return verifier if ours else None


def _key(state: str) -> str:
    return f"authorization:{hashlib.sha256(state.encode()).hexdigest()}"
