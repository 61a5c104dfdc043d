"""Authorizations under way: what was promised when a person was sent to Spotify.

Each has its own key in Redis, named by a hash of the `state`, and can be taken out once. Keeping
them out of the session means that two tabs cannot overwrite each other's. Beside it stands how it
ended, for a browser that sends the callback twice and shows the second answer.
"""

import hashlib
import logging
import secrets
import time
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import redis

from app import sessions
from app.parts import parts
from app.sealing import Unreadable

log = logging.getLogger(__name__)

LIFE_SECONDS = sessions.VISIT_SECONDS
RESULT_SECONDS = 60  # how long after its end an authorization's result can be asked for
WAIT_SECONDS = 15.0  # for the twin that is at it; its calls to Spotify take 14 s at most


class Pending(msgspec.Struct):
    """Who may finish the authorization, and the PKCE verifier to finish it with (sealed)."""

    session: str
    user_id: int | None
    verifier: bytes


class Result(msgspec.Struct):
    """How an authorization ended, for whoever may know; not yet, while `settled` is false."""

    session: str
    user_id: int | None
    settled: bool = False
    link_id: int | None = None


def begin(user_id: int | None, *, ask_again: bool = False) -> str:
    """Start an authorization for this session and user. Returns the URL at Spotify.

    `state` and verifier are 256 random bits each (RFC 9700 sections 2.1 and 2.1.1); the verifier
    never leaves this server.
    """
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    pending = Pending(sessions.binding(), user_id, parts().sealer.seal(verifier, "verifier", _key(state)))
    _put(_key(state), pending, LIFE_SECONDS)
    _put(_result_key(state), Result(sessions.binding(), user_id), LIFE_SECONDS)
    sessions.start()
    return parts().accounts.authorize_url(state=state, verifier=verifier, ask_again=ask_again)


def current(user_id: int | None) -> str:
    """The URL of an authorization for this session and user, the last one while that is young.

    For a page that asks every second: each new one would stay in Redis for ten minutes.
    """
    key, sealer = f"authorize-url:{sessions.binding()}:{user_id}", parts().sealer
    raw: Any = parts().redis.get(key)
    if raw is not None:
        with suppress(Unreadable):
            url = sealer.open(raw, "url", key)
            state = parse_qs(urlsplit(url).query)["state"][0]
            if parts().redis.exists(_key(state)):  # not spent yet
                return url
    url = begin(user_id)
    parts().redis.set(key, sealer.seal(url, "url", key), ex=LIFE_SECONDS // 2)
    return url


def spend(state: str, user_id: int | None) -> str | None:
    """Take an authorization out, once. Returns its verifier, or None where it does not belong.

    The state dies at first use, whoever presents it (RFC 9700 section 4.2.4).
    """
    raw: Any = parts().redis.getdel(_key(state))
    if raw is None:
        return None
    with suppress(msgspec.MsgspecError, Unreadable):
        pending = msgspec.msgpack.decode(raw, type=Pending)
        verifier = parts().sealer.open(pending.verifier, "verifier", _key(state))
        if pending.session == sessions.binding() and pending.user_id == user_id:
            return verifier
    parts().redis.delete(_result_key(state))  # there will be none to wait for
    return None


def settle(state: str, binding: str, user_id: int | None, link_id: int | None) -> None:
    """Say how an authorization that was spent ended: with this link, or without any.

    `binding` is the session's as it was when the callback came.
    """
    try:
        _put(_result_key(state), Result(binding, user_id, True, link_id), RESULT_SECONDS)
    except redis.RedisError as error:
        # What was connected stays connected; only a twin has to ask again.
        log.warning("authorization_not_settled", extra={"reason": type(error).__name__})


def twins_link(state: str, user_id: int | None) -> int | None:
    """The link that an equal callback of this session has made, or is making right now."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        raw: Any = parts().redis.get(_result_key(state))
        if raw is None:
            return None
        try:
            result = msgspec.msgpack.decode(raw, type=Result)
        except msgspec.MsgspecError:
            return None
        if result.session != sessions.binding() or result.user_id != user_id:
            return None
        if result.settled or time.monotonic() > deadline:
            return result.link_id
        time.sleep(0.05)


def _put(key: str, value: Pending | Result, seconds: int) -> None:
    parts().redis.set(key, msgspec.msgpack.encode(value), ex=seconds)


def _key(state: str) -> str:
    return f"authorization:{hashlib.sha256(state.encode()).hexdigest()}"


def _result_key(state: str) -> str:
    return f"authorized:{hashlib.sha256(state.encode()).hexdigest()}"
