"""What `create_app` built and requests use: one typed place instead of names in `app.extensions`."""

from dataclasses import dataclass
from typing import Any, cast

import redis
from flask import current_app
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.background import SingleFlight
from app.bulkhead import Bulkhead
from app.door import Door
from app.locks import UserLocks
from app.mail import Mailer
from app.sealing import Sealer
from app.spotify.accounts import SpotifyAccounts
from app.spotify.gate import Gate
from app.spotify.sharing import SharedAnswers
from app.spotify.webapi import SpotifyWebApi
from config import Config

# How long a caller waits for another one's try to connect while Redis is away.
TURN_SECONDS = 0.05
CONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class Parts:
    config: Config
    redis: redis.Redis
    sealer: Sealer
    locks: UserLocks
    accounts: SpotifyAccounts
    webapi: SpotifyWebApi
    gate: Gate  # to the Web API, for all processes
    bulkhead: Bulkhead  # for what waits for the Web API
    shared: SharedAnswers  # of the Web API
    refreshes: SingleFlight[Any]  # of tokens, by link
    mailer: Mailer


def parts() -> Parts:
    """The parts of the current application."""
    return cast("Parts", current_app.extensions["backline"])


class _Connections(redis.ConnectionPool):
    """Connections to Redis, new ones through a door."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._door = Door(TURN_SECONDS, CONNECT_SECONDS)

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        refusal = redis.ConnectionError("another thread is trying to connect")
        return self._door.go(lambda: super(_Connections, self).get_connection(*arguments, **options), refusal)


def redis_client(url: str) -> redis.Redis:
    """A client that answers or fails within half a second.

    redis-py's defaults hold a thread for a minute against a stalled server: five seconds a try,
    ten tries. Nothing is retried here, because a lost reply does not mean a lost effect.
    """
    return redis.Redis.from_pool(
        _Connections.from_url(
            url,
            socket_timeout=0.5,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
    )
