"""Several commands in one round trip to Redis, at half the cost of redis-py's pipeline."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
from redis.exceptions import BusyLoadingError

from app.infra.redis_refusals import Refused, is_refusal

# How long to wait before each repetition of a refused command. A failover takes seconds, for which no request
# waits; a slot that is being moved is elsewhere in a moment.
REPEAT_AFTER_SECONDS = (0.0, 0.05)

Command = tuple[str | bytes | int | float, ...]
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # any tuple


@dataclass(slots=True)
class Replies:
    """The replies, in the order of the commands, as bytes, numbers, None, or lists of these.

    One that is a `redis.ResponseError` is Redis' own. `connected_at` is when the connection was opened
    (`time.monotonic`): all that is known to be from the same server came over a connection at least as old.
    In a cluster, it is also not before the slots were last seen to move.
    """

    values: list[Any]
    connected_at: float
    has_refusals: bool = False


def round_trip(client: redis.Redis, commands: Sequence[Command]) -> Replies:
    """Send commands, and read all replies. Those that Redis refuses are sent again.

    In a cluster, the commands for one node go in one round trip, and nodes work at the same time. A command
    without a key goes where the first one with a key goes.

    Raises:
        redis.RedisError: Redis is not available.
        Refused: It refuses a command, because it is a replica, for example.
    """
    pool: Any = client.connection_pool
    replies: Replies = pool.exchange(commands)
    return _repeat_refused(pool, commands, replies) if replies.has_refusals else replies


def values_of(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Send commands, and return the values of all replies.

    Raises:
        redis.RedisError: Redis is not available, or a command has failed.
    """
    values = round_trip(client, commands).values
    for value in values:
        if isinstance(value, redis.RedisError):
            raise value
    return values


class Exchange:
    """Commands that were sent over one connection of a pool, and whose replies have to be read."""

    __slots__ = ("_connection", "_count", "_pool")

    def __init__(self, pool: Any, commands: Sequence[Command]) -> None:
        """Send commands.

        Raises:
            redis.RedisError: The server is not available.
        """
        self._pool, self._count = pool, len(commands)
        self._connection = pool.take_warm()
        if self._connection is None:
            self._connection = pool.get_connection()
        try:
            self._connection.send_packed_command([b"".join(map(_pack, commands))])
        except BaseException:
            self.abandon()
            raise

    def read(self) -> Replies:
        """Read the replies. Call either this or `abandon`, once.

        Raises:
            redis.RedisError: The server is not available.
        """
        connection = self._connection
        try:
            values: list[Any] = []
            while len(values) < self._count:
                values.append(_read(connection))
        except BaseException:
            self.abandon()
            raise
        if connection.has_refused:
            connection.close_if_stale()  # it may lead to a server that is no longer the primary
            self._pool.release(connection)
            return Replies(values, connection.connected_at, has_refusals=True)
        self._pool.release_warm(connection)
        return Replies(values, connection.connected_at)

    def abandon(self) -> None:
        """Close the connection. There may be replies left, which are no one else's."""
        self._connection.disconnect()
        self._pool.release(self._connection)


def _read(connection: Any) -> Any:
    try:
        # redis-py would close the connection after LOADING. `Exchange` closes it after all other errors.
        return connection.read_response(disconnect_on_error=False)
    except (redis.ResponseError, BusyLoadingError) as error:
        return error


def _repeat_refused(pool: Any, commands: Sequence[Command], replies: Replies) -> Replies:
    """Send refused commands again, to the server that is now in charge.

    Raises:
        redis.RedisError: The server is not available, or refuses them too (`Refused`).
    """
    values, connected_at = replies.values, replies.connected_at
    for pause in REPEAT_AFTER_SECONDS:
        refused = [number for number, value in enumerate(values) if is_refusal(value)]
        if not refused:
            break
        time.sleep(pause)
        again: Replies = pool.repeat([commands[number] for number in refused], [values[n] for n in refused])
        for number, value in zip(refused, again.values, strict=True):
            values[number] = value
        connected_at = max(connected_at, again.connected_at)
    for value in values:
        if is_refusal(value):
            raise Refused(str(value)) from value
    return Replies(values, connected_at)
