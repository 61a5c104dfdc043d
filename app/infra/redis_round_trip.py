"""Several commands in one round trip to Redis, at half the cost of redis-py's pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis

Command = tuple[str | bytes | int, ...]
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # any tuple


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies, in the order of the commands, as bytes, numbers, None, or lists of these.

    One that is a `redis.ResponseError` is Redis' own. `connected_at` is when the connection was opened
    (`time.monotonic`): all that is known to be from the same server came over a connection at least as old.
    """

    values: list[Any]
    connected_at: float


def round_trip(client: redis.Redis, commands: Sequence[Command]) -> Replies:
    """Send commands, and read all replies.

    Raises:
        redis.RedisError: Redis is not available.
    """
    pool: Any = client.connection_pool
    connection = pool.take_warm()
    if connection is None:
        connection = pool.get_connection()
    try:
        connection.send_packed_command([b"".join(map(_pack, commands))])
        values = [_read(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # there may be replies left, which are no one else's
        pool.release(connection)
        raise
    pool.release_warm(connection)
    return Replies(values, connection.connected_at)


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error
