"""A call and its first round trip to Redis: what the cache has, and whether Spotify may be called now.

The commands can share the round trip that loads the session. They are then made from what the session
contained last time, so a call may be rejected after its lookup has made it the leader of a read.
"""

from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any, Self

import redis

from app.infra import redis_scripts
from app.infra.redis_round_trip import Command
from app.models.snapshots import ConnectionSnapshot
from app.resilience.bulkhead import Bulkhead
from app.spotify.clients.call import Call
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.rate_limit import Check
from app.spotify.gateway.cache import Lookup, Read, ResponseCache, State


class PreparedCall:
    """Looks up a read, or drops what a write may change, and checks Spotify's limits.

    At the end of the block, a lead that was not taken is released, and calls that were made are counted.

    Attributes:
        call: The call.
        check: The limits, once the replies have been received.
        read, lookup: Of a call that is a read, likewise.
    """

    check: Check | None = None
    read: Read
    lookup: Lookup

    def __init__(
        self,
        call: Call,
        client: redis.Redis,
        cache: ResponseCache,
        limits: ClientLimitsRegistry,
        bulkhead: Bulkhead,
    ) -> None:
        self.call = call
        self._client = client
        self._cache = cache
        self._limits = limits
        self._rate_limiter = limits.deployment.rate_limiter  # until the connection is known
        self._bulkhead = bulkhead
        self._connection: tuple[int, str] | None = None  # that of the commands
        self._commands: Sequence[Command] = ()
        self._may_lead = False
        self._since: int | None = None  # Redis' time of the first lookup, in ms

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._commands and self.check is None:
            # Redis did not respond. The caller must not wait for it again, and the lead expires by itself.
            redis_scripts.unload(self._client)
            return
        self.release()
        self._rate_limiter.count(self.check)

    def commands_for(self, connection: ConnectionSnapshot | None) -> Sequence[Command]:
        """Return the commands for a connection. `receive` reads the replies.

        Raises:
            redis.RedisError: Redis does not work.
        """
        if connection is None:
            return ()
        redis_scripts.load(self._client)
        spotify_user_id, grant_id = connection.id, connection.token.grant_id
        self._connection, self.check, self._since = (spotify_user_id, grant_id), None, None
        self._rate_limiter = self._limits.of(connection.token.client_id).rate_limiter
        if self.call.is_read:
            # The grant is part of the key: a visitor must not read what another grant allows. Also, ids are
            # reused after a backup is restored.
            self.read = Read.of(spotify_user_id, f"{grant_id} {self.call.cache_key}")
            # Others would wait for a leader that waits for a slot.
            self._may_lead = self._bulkhead.has_free_slot(bulkhead_caller(connection))
        return self._current_commands(spotify_user_id)

    def receive(self, replies: Sequence[Any] | None) -> None:
        """Read the replies to the commands. There are none if the commands were made from something outdated.

        Raises:
            redis.RedisError: Redis does not work.
        """
        if not replies:
            self._commands = ()
            return
        first, check = redis_scripts.resend_unknown(self._client, self._commands, replies)
        if self.call.is_read:
            self.lookup = self._cache.read_lookup(self.read, self._commands[0], first)
            self._since = self._since or self.lookup.now
        self._may_lead = self.call.is_read and self.lookup.state is State.LEADING
        self.check = self._rate_limiter.read_check(self.call.scope, check)

    def complete(self, connection: ConnectionSnapshot) -> None:
        """Send the commands for a connection, unless that has been done.

        Raises:
            redis.RedisError: Redis does not work.
        """
        if self.check is None or self._connection != (connection.id, connection.token.grant_id):
            self.release()
            self.receive(redis_scripts.run(self._client, *self.commands_for(connection)))

    def repeat(self, spotify_user_id: int) -> None:
        """Send the commands again, after a wait for a slot. The lookup leads unless another caller does.

        Raises:
            redis.RedisError: Redis does not work.
        """
        self._may_lead = True
        self.receive(redis_scripts.run(self._client, *self._current_commands(spotify_user_id)))

    @property
    def is_current(self) -> bool:
        """Whether the commands were sent so recently that the call may begin."""
        return self.check is not None and self.check.is_current

    def take_lead(self) -> None:
        """Take over the lead: the caller stores a response or releases it."""
        self._may_lead = False

    def release(self) -> None:
        """Release the lead, if the lookup has brought it."""
        if self._may_lead:
            self._may_lead = False
            self._cache.release(self.read)

    def take_uncounted(self) -> list[Command]:
        """Return the commands that count the calls that were made. The caller sends them."""
        return self.check.take_uncounted() if self.check is not None else []

    def _current_commands(self, spotify_user_id: int) -> Sequence[Command]:
        first = self._cache.drop_command(spotify_user_id)
        if self.call.is_read:
            first = self._cache.lookup_command(self.read, since=self._since, lead=self._may_lead)
        self._commands = (first, self._rate_limiter.check_command(self.call.scope))
        return self._commands


def bulkhead_caller(connection: ConnectionSnapshot) -> Hashable:
    """Return who has a share of the bulkhead: a user's application, or a connection of the deployment's."""
    return connection.token.client_id or connection.id
