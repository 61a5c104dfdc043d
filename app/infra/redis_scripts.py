"""Lua scripts as commands, so that several of them can share a round trip."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import redis

from app.infra.redis_cluster import ClusterPool
from app.infra.redis_round_trip import Command, round_trip

_TEXTS: dict[bytes, bytes] = {}  # by SHA-1
# Clients that have sent all scripts. Their server still has them, unless it was restarted.
_loaded: "WeakSet[redis.Redis]" = WeakSet()


class Script:
    """A Lua script. Redis runs it by its SHA-1, once it has seen the text."""

    def __init__(self, path: Path) -> None:
        text = path.read_bytes()
        self._sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        _TEXTS[self._sha] = text

    def command(self, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
        """Return the command that runs the script."""
        return (b"EVALSHA", self._sha, len(keys), *keys, *arguments)


def load(client: redis.Redis) -> None:
    """Send the texts of all scripts, unless this client has done so.

    Without this, the first call of each script would fail. The embedded substitute for Redis closes the
    connection after any error, so other replies of the round trip would be lost. It is not used as a cluster,
    whose nodes get each script when they need it (`resend_unknown`).

    Raises:
        redis.RedisError: Redis is not available.
    """
    if client not in _loaded and not isinstance(client.connection_pool, ClusterPool):
        round_trip(client, [("SCRIPT", "LOAD", text) for text in _TEXTS.values()])
        _loaded.add(client)


def unload(client: redis.Redis) -> None:
    """Send the texts again before the next script, because the server may have been restarted."""
    _loaded.discard(client)


def run(client: redis.Redis, *commands: Command) -> list[Any]:
    """Send commands in one round trip, and return the replies.

    Raises:
        redis.RedisError: Redis is not available. Its errors about a single command are among the replies.
    """
    load(client)
    try:
        return resend_unknown(client, commands, round_trip(client, commands).values)
    except redis.RedisError:
        unload(client)
        raise


def call(client: redis.Redis, script: Script, keys: Sequence[str], *arguments: str | bytes | int) -> Any:
    """Run one script, and return what it returns.

    Raises:
        redis.RedisError: Redis is not available, or the script failed.
    """
    [reply] = run(client, script.command(keys, *arguments))
    if isinstance(reply, redis.RedisError):
        raise reply
    return reply


def resend_unknown(client: redis.Redis, commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Resend the commands that failed because Redis has forgotten their script. Returns all replies.

    Raises:
        redis.RedisError: Redis is not available.
    """
    complete = list(replies)
    unknown = [
        number for number, reply in enumerate(complete) if isinstance(reply, redis.exceptions.NoScriptError)
    ]
    if unknown:
        again = round_trip(client, [_with_text(commands[number]) for number in unknown])
        for number, reply in zip(unknown, again.values, strict=True):
            complete[number] = reply
    return complete


def _with_text(command: Command) -> Command:
    _, sha, *rest = command
    assert isinstance(sha, bytes)
    return (b"EVAL", _TEXTS[sha], *rest)
