"""Limits the calls to the Web API that all processes together make in any 30 seconds.

The limit is a setting, or learned: there is none until Spotify rejects all calls of the application. Then it
is 80% of the calls in the 30 seconds before, and it grows by 5% for every ten minutes without another
rejection. While several people make calls, each of them can use half of it.
"""

import logging
from pathlib import Path
from typing import Any

import redis

from config import Config

log = logging.getLogger(__name__)

WINDOW_SECONDS = 30
# Polls can use this share of the limit. The rest is for clicks.
POLL_SHARE = 0.8
# After a rejection, the limit is this share of the calls that were made, but not less than the minimum.
LEARNED_SHARE, MIN_LEARNED = 0.8, 5
GROWTH, GROWTH_SECONDS = 1.05, 600
LEARNED_FOR_SECONDS = 86_400


class Budget:
    """Counts calls in Redis. Without Redis there is no limit but Spotify's own."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self._fixed = config.gateway_budget
        self._limit_key = f"spotify-budget:{{{config.spotify_client_id}}}"
        self._calls_key = f"spotify-calls:{{{config.spotify_client_id}}}"
        self._spend, self._learn = (
            client.register_script((Path(__file__).parent / f"budget_{name}.lua").read_text())
            for name in ("spend", "learn")
        )

    def spend(self, spotify_user_id: int | None, *, is_poll: bool) -> float:
        """Count a call if there is room for it. Returns 0, or after how many seconds to try again.

        `spotify_user_id` is None for people who are connecting; together they count as one person.
        """
        caller = "connecting" if spotify_user_id is None else str(spotify_user_id)
        keys = [self._limit_key, self._calls_key, f"{self._calls_key}:{caller}"]
        try:
            wait: Any = self._spend(
                keys,
                [
                    WINDOW_SECONDS,
                    self._fixed or "",
                    POLL_SHARE if is_poll else 1,
                    caller,
                    GROWTH,
                    GROWTH_SECONDS * 1000,
                ],
            )
            return float(wait) / 1000
        except redis.RedisError as error:
            self._handle_failure(error, keys)
            return 0

    def learn(self) -> None:
        """Lower the limit after Spotify has rejected all calls of the application, unless it is fixed."""
        if self._fixed:
            return
        keys = [self._limit_key, self._calls_key]
        try:
            limit: Any = self._learn(
                keys,
                [
                    WINDOW_SECONDS,
                    LEARNED_SHARE,
                    MIN_LEARNED,
                    GROWTH,
                    GROWTH_SECONDS * 1000,
                    LEARNED_FOR_SECONDS,
                ],
            )
        except redis.RedisError as error:
            self._handle_failure(error, keys)
        else:
            if limit:
                log.warning("budget_lowered", extra={"calls": limit, "seconds": WINDOW_SECONDS})

    def _handle_failure(self, error: redis.RedisError, keys: list[str]) -> None:
        log.warning("budget_not_counted", extra={"reason": type(error).__name__})
        if isinstance(error, redis.ResponseError):  # the stored data is not ours
            try:
                self._client.unlink(*keys)
            except redis.RedisError:
                log.warning("budget_not_counted", extra={"reason": type(error).__name__})
