"""Redis Sentinel: asks several Sentinels for the address of the current primary."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from app.infra.redis_connection import BoundedConnection, BoundedTlsConnection
from app.settings.redis_urls import SentinelUrl

# How long a Sentinel may take to connect, and to reply. One that does not respond costs this once: from then
# on, one that does is asked first.
SENTINEL_SECONDS = 0.3


class Sentinels:
    """Several Sentinels, which agree on the primary of one service."""

    def __init__(self, url: SentinelUrl) -> None:
        self._service = url.service
        names = ("username", "password")
        self._credentials = {name: url.options[name] for name in names if name in url.options}
        tls = {name: value for name, value in url.options.items() if name.startswith("ssl_")}
        self._without_password = _sentinel(url, tls)
        self._with_password = _sentinel(url, tls | self._credentials)

    def find_primary(self) -> tuple[str, int]:
        """Return the primary's host and port.

        Sentinels often have no password. If they have one, it must be that of the primary.

        Raises:
            redis.ConnectionError: No Sentinel responds, or none knows a primary that responds.
        """
        try:
            return self._discover(self._without_password)
        except MasterNotFoundError as error:
            if not self._credentials or redis.AuthenticationError.__name__ not in str(error):
                raise
        return self._discover(self._with_password)

    def _discover(self, sentinel: Sentinel) -> tuple[str, int]:
        host, port = sentinel.discover_master(self._service)  # type: ignore[no-untyped-call]
        return host, port


def _sentinel(url: SentinelUrl, options: dict[str, Any]) -> Sentinel:
    sentinel = Sentinel([])  # type: ignore[no-untyped-call]
    sentinel.sentinels = [
        redis.Redis.from_pool(
            redis.ConnectionPool(
                BoundedTlsConnection if url.has_tls else BoundedConnection,
                host=host,
                port=port,
                socket_timeout=SENTINEL_SECONDS,
                socket_connect_timeout=SENTINEL_SECONDS,
                retry=Retry(NoBackoff(), 0),
                driver_info=None,
                **options,
            )
        )
        for host, port in url.sentinels
    ]
    return sentinel
