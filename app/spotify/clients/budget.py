"""How many calls to the Web API may be made in any 30 seconds, by all processes together.

The limit is a number from the settings, or learned: there is none until Spotify refuses the whole
application. Then it is 80 % of what was sent in the 30 seconds before, and 5 % more for every ten minutes
without another refusal. While several people make calls, one of them may use half of it.
"""

import logging
from pathlib import Path
from typing import Any

import redis

from config import Config

log = logging.getLogger(__name__)

WINDOW_SECONDS = 30
# What polls may use. The rest is for what somebody clicks on.
POLLS_SHARE = 0.8
# What is learned from a refusal.
LEARNED_SHARE, LEAST_LEARNED = 0.8, 5
GROWTH, GROWTH_SECONDS = 1.05, 600
LEARNED_FOR_SECONDS = 86_400


class Budget:
    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self._fixed = config.gateway_budget
        self._limit_key = f"spotify-budget:{{{config.spotify_client_id}}}"
        self._calls_key = f"spotify-calls:{{{config.spotify_client_id}}}"
        self._spend, self._learn = (
            client.register_script((Path(__file__).parent / f"budget_{name}.lua").read_text())
            for name in ("spend", "learn")
        )

    def spend(self, link_id: int | None, *, is_poll: bool) -> float:
        """Count a call if there is room for it. Returns 0, or after how many seconds there may be room.

        `link_id` is None for people who are about to connect; they count as one person.
        """
        caller = "connecting" if link_id is None else str(link_id)
        keys = [self._limit_key, self._calls_key, f"{self._calls_key}:{caller}"]
        try:
            wait: Any = self._spend(
                keys,
                [
                    WINDOW_SECONDS,
                    self._fixed or "",
                    POLLS_SHARE if is_poll else 1,
                    caller,
                    GROWTH,
                    GROWTH_SECONDS * 1000,
                ],
            )
            return float(wait) / 1000
        except redis.RedisError as error:
            # The budget is ours, not Spotify's: without it Spotify itself says when it is enough.
            self._not_counted(error, keys)
            return 0

    def learn(self) -> None:
        """Lower the limit, unless it is fixed: Spotify has refused the whole application."""
        if self._fixed:
            return
        keys = [self._limit_key, self._calls_key]
        try:
            limit: Any = self._learn(
                keys,
                [
                    WINDOW_SECONDS,
                    LEARNED_SHARE,
                    LEAST_LEARNED,
                    GROWTH,
                    GROWTH_SECONDS * 1000,
                    LEARNED_FOR_SECONDS,
                ],
            )
        except redis.RedisError as error:
            self._not_counted(error, keys)
        else:
            if limit:
                log.warning("budget_lowered", extra={"calls": limit, "seconds": WINDOW_SECONDS})

    def _not_counted(self, error: redis.RedisError, keys: list[str]) -> None:
        log.warning("budget_not_counted", extra={"reason": type(error).__name__})
        if isinstance(error, redis.ResponseError):  # what is stored there makes no sense
            try:
                self._client.unlink(*keys)
            except redis.RedisError:
                log.warning("budget_not_counted", extra={"reason": type(error).__name__})
