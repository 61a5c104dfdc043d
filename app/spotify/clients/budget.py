"""Limits the calls to the Web API that all processes together make in any 30 seconds.

The limit is a setting, or learned: there is none until Spotify rejects all calls of the application. Then it
is 80% of the calls in the 30 seconds before, and it grows by 5% for every ten minutes without another
rejection. People share it by max-min fairness: one person can use whatever the others do not request.
"""

import logging
import math
from pathlib import Path

import redis

from app.infra import redis_scripts
from app.infra.redis_round_trip import Command, values_of
from app.infra.redis_scripts import Script

log = logging.getLogger(__name__)

WINDOW_SECONDS = 30
# Polls can use this share of the limit. The rest is for clicks.
POLL_SHARE = 0.8
# While several people make calls, this share is left to those who request little, for calls that could not
# be expected.
UNEXPECTED_SHARE = 0.05
# After a rejection, the limit is this share of the calls that were made, but not less than the minimum.
LEARNED_SHARE, MIN_LEARNED = 0.8, 5
GROWTH, GROWTH_SECONDS = 1.05, 600
LEARNED_FOR_SECONDS = 86_400

_SPEND, _LEARN = (Script(Path(__file__).with_name(f"budget_{name}.lua")) for name in ("spend", "learn"))


class Budget:
    """Counts calls of a client id in Redis. Without Redis there is no limit but Spotify's own.

    With `fixed`, that is the limit, and none is learned.
    """

    def __init__(self, client: redis.Redis, client_id: str, fixed: int | None) -> None:
        self._client = client
        self._fixed = fixed
        self.limit_key = f"spotify-budget:{{{client_id}}}"  # of the learned limit
        self._calls_key = f"spotify-calls:{{{client_id}}}"
        self._people_key = f"{self._calls_key}:people"

    @property
    def is_fixed(self) -> bool:
        """Whether the limit is a setting."""
        return self._fixed is not None

    def spend(self, spotify_user_id: int | None, *, is_poll: bool, has_waited: bool = False) -> float:
        """Count a call if there is room for it. Returns 0, or after how many seconds to try again.

        `spotify_user_id` is None for people who are connecting; together they count as one person. A call
        that tries again `has_waited`, so that it is not another request of this person.
        """
        command = self._spend_command(
            spotify_user_id, self._fixed or "", is_poll=is_poll, has_waited=has_waited
        )
        return float(self._run(command)) / 1000

    def count_command(self, spotify_user_id: int | None) -> Command:
        """Return the command that counts a call that has been made without a limit."""
        return self._spend_command(spotify_user_id, "none")

    def usage(self) -> tuple[int, int | None]:
        """Return how many calls were made in the last 30 seconds, and how many may be, if there is a limit.

        Raises:
            redis.RedisError: Redis is not available, or the stored data is not ours.
        """
        commands: list[Command] = [
            ("TIME",),
            ("HGETALL", self._calls_key),
            ("HMGET", self.limit_key, "limit", "since"),
        ]
        [now, _], counted, [learned, since] = values_of(self._client, commands)
        calls = 0
        for slot, value in zip(counted[::2], counted[1::2], strict=True):
            second, _, count = value.partition(b":")
            if slot.isdigit() and int(now) - WINDOW_SECONDS <= int(second) <= int(now):
                calls += int(count)
        if self._fixed is not None or learned is None:
            return calls, self._fixed
        periods = (int(now) - int(since) // 1000) // GROWTH_SECONDS
        return calls, math.ceil(int(learned) * GROWTH ** min(max(periods, 0), 1000))

    def learn(self) -> None:
        """Lower the limit after Spotify has rejected all calls of the application, unless it is fixed."""
        if self._fixed:
            return
        growth = (str(GROWTH), GROWTH_SECONDS * 1000)
        limit = self._run(
            _LEARN.command(
                [self.limit_key, self._calls_key],
                WINDOW_SECONDS,
                str(LEARNED_SHARE),
                MIN_LEARNED,
                *growth,
                LEARNED_FOR_SECONDS,
            )
        )
        if limit:
            log.warning("budget_lowered", extra={"calls": limit, "seconds": WINDOW_SECONDS})

    def _spend_command(
        self,
        spotify_user_id: int | None,
        limit: int | str,
        *,
        is_poll: bool = False,
        has_waited: bool = False,
    ) -> Command:
        caller = "connecting" if spotify_user_id is None else spotify_user_id
        return _SPEND.command(
            [self.limit_key, self._calls_key, f"{self._calls_key}:{caller}", self._people_key],
            WINDOW_SECONDS,
            limit,
            str(POLL_SHARE) if is_poll else "",
            "1" if has_waited else "",
            str(UNEXPECTED_SHARE),
            str(GROWTH),
            GROWTH_SECONDS * 1000,
        )

    def _run(self, command: Command) -> int:
        """Run a script. Returns 0 if Redis cannot run it: calls must not depend on the budget."""
        try:
            [reply] = redis_scripts.run(self._client, command)
            if not isinstance(reply, redis.RedisError):
                return int(reply)
            _log_failure(reply)
            keys = [str(key) for key in command[3 : 3 + int(command[2])]]
            self._client.unlink(*keys)  # the stored data is not ours
        except redis.RedisError as error:
            _log_failure(error)
        return 0


def _log_failure(error: redis.RedisError) -> None:
    log.warning("budget_not_counted", extra={"reason": type(error).__name__})
