"""Redis Sentinel: asks several Sentinels for the address of the current primary."""

import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from app.infra.redis_connection import BoundedConnection, BoundedTlsConnection
from app.settings.redis_urls import SentinelUrl

# How long a Sentinel may take to connect, and to reply.
SENTINEL_SECONDS = 0.3
# For how long one that failed is asked only if no other one replies. Otherwise, every attempt during a
# failover would wait for a Sentinel that is gone with the primary.
PAUSE_SECONDS = 3.0


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
        self._failed_at = dict.fromkeys(self._clients, float("-inf"))  # `time.monotonic`

    def find_primary(self) -> tuple[str, int]:
        """Return the primary's host and port, according to the first Sentinel that has one.

        Raises:
            redis.ConnectionError: No Sentinel responds, or none knows a primary that responds.
        """
        has_reply = False
        for client in sorted(self._clients, key=self._failed_at.__getitem__):
            if has_reply and time.monotonic() - self._failed_at[client] < PAUSE_SECONDS:
                break
            try:
                state = client.sentinel_masters().get(self._service)  # type: ignore[no-untyped-call]
            except redis.RedisError:  # also of one that is no Sentinel, or rejects the command
                self._failed_at[client] = time.monotonic()
                continue
            has_reply = True
            if state and state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no Sentinel knows a primary of {self._service!r} that responds")

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
                if not isinstance(found.get(address), redis.ResponseError):  # which says more
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
