"""Reads and changes the sessions that Redis stores."""

from typing import Any

import msgspec
import redis
from flask import Flask
from werkzeug.test import Cookie


def read(app: Flask, key: bytes) -> dict[str, Any]:
    """Return the data of the session at this key."""
    raw: Any = _store(app).get(key)
    packed = app.extensions["backline"].redis_cipher.decrypt(key.decode(), raw)
    assert packed is not None, "not encrypted for this key"
    found: dict[str, Any] = msgspec.msgpack.decode(packed)
    return found


def write(app: Flask, key: bytes, data: dict[str, Any] | bytes) -> None:
    """Store data as the application does, and keep the session's TTL."""
    packed = data if isinstance(data, bytes) else msgspec.msgpack.encode(data)
    _store(app).set(key, app.extensions["backline"].redis_cipher.encrypt(key.decode(), packed), keepttl=True)


def load(app: Flask, cookie: Cookie | None, session: Any) -> None:
    """Fill a session from the one that a cookie names."""
    interface: Any = app.session_interface
    headers = {"Cookie": f"{cookie.key}={cookie.value}"} if cookie is not None else {}
    with app.test_request_context(headers=headers) as context:
        requested = interface.requested(context.request)
        if requested is not None:
            interface.open_stored(session, requested, _store(app).get(requested.key))


def change(app: Flask, key: bytes, **members: object) -> None:
    """Change members of a session."""
    write(app, key, {**read(app, key), **members})


def _store(app: Flask) -> redis.Redis:
    store: redis.Redis = app.extensions["backline"].redis
    return store
