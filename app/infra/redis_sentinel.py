"""Redis Sentinel: asks several Sentinels for the address of the current primary."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from app.infra.redis_connection import BoundedConnection, BoundedTlsConnection
from app.settings.redis_urls import SentinelUrl

# How long a Sentinel may take to connect, and to reply.
SENTINEL_SECONDS = 0.3


class Sentinels:
    """Several Sentinels, which agree on the primary of one service.

    Often, they have no password. If they have one, it must be that of the primary.
    """

    def __init__(self, url: SentinelUrl) -> None:
        self._service = url.service
        options = url.options
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        credentials = {name: options[name] for name in ("username", "password") if name in options}
        self._clients = [_client(address, url, tls) for address in url.sentinels]
        if credentials:
            self._clients += [_client(address, url, tls | credentials) for address in url.sentinels]
        self._responded: redis.Redis | None = None

    def find_primary(self) -> tuple[str, int]:
        """Return the primary's host and port, according to the first Sentinel that responds.

        Raises:
            redis.ConnectionError: No Sentinel responds, or none knows a primary that responds.
        """
        sentinel = Sentinel([])  # type: ignore[no-untyped-call]
        # `discover_master` reorders the list, so threads must not share one.
        sentinel.sentinels = sorted(self._clients, key=lambda client: client is not self._responded)
        host, port = sentinel.discover_master(self._service)  # type: ignore[no-untyped-call]
        self._responded = sentinel.sentinels[0]
        return host, port

    def states(self) -> dict[str, dict[str, Any] | redis.RedisError]:
        """Ask every Sentinel for the state of the primary. Returns its reply or the error, by address."""
        found: dict[str, dict[str, Any] | redis.RedisError] = {}
        for client in self._clients:  # those with a password come last
            options = client.connection_pool.connection_kwargs
            address = f"{options['host']}:{options['port']}"
            if not isinstance(found.get(address, redis.RedisError()), redis.RedisError):
                continue
            try:
                found[address] = client.sentinel_master(self._service)  # type: ignore[no-untyped-call]
            except redis.RedisError as error:
                found[address] = error
        return found


def _client(address: tuple[str, int], url: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    host, port = address
    return redis.Redis.from_pool(
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
