"""What `create_app` built and requests use: one typed place instead of names in `app.extensions`."""

from dataclasses import dataclass
from typing import Any, cast

import redis
from flask import current_app
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.background import SingleFlight
from app.locks import UserLocks
from app.mail import Mailer
from app.sealing import Sealer
from app.spotify.accounts import SpotifyAccounts
from app.spotify.webapi import SpotifyWebApi
from config import Config


@dataclass(frozen=True)
class Parts:
    config: Config
    redis: redis.Redis
    sealer: Sealer
    locks: UserLocks
    accounts: SpotifyAccounts
    webapi: SpotifyWebApi
    refreshes: SingleFlight[Any]  # of tokens, by link
    mailer: Mailer


def parts() -> Parts:
    """The parts of the current application."""
    return cast("Parts", current_app.extensions["backline"])


def redis_client(url: str) -> redis.Redis:
    """A client that answers or fails within half a second.

    redis-py's defaults hold a thread for a minute against a stalled server: five seconds a try,
    ten tries. Nothing is retried here, because a lost reply does not mean a lost effect.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
