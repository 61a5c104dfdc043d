"""The forms of REDIS_URL: one server, or Redis Sentinel, which knows the current primary."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool, RedisError
from redis.connection import Connection, SSLConnection, parse_url

from app.settings.urls import is_host, is_loopback

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://user:password@host:26379,host:26379/service/0`, parsed.

    Attributes:
        sentinels: The address of each Sentinel.
        service: The name under which they monitor the primary.
        options: The options of connections to the primary, such as `db` and `password`.
        has_tls: Whether connections to the primary and to Sentinels are encrypted.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    has_tls: bool


def parse_sentinel_url(url: str) -> SentinelUrl | None:
    """Parse a URL of Sentinels. Returns None if it has another scheme.

    Raises:
        ValueError: A host, a port, the service, or the database is missing or malformed.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SENTINEL_SCHEMES:
        return None
    parts = urlsplit(f"//{rest}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing")
    query = f"?{parts.query}" if parts.query else ""
    options = parse_url(f"{SENTINEL_SCHEMES[scheme]}://{credentials}{at}localhost/{database or 0}{query}")  # type: ignore[no-untyped-call]
    if database and not database.isdigit():  # redis-py would use database 0
        raise ValueError("the database is not a number")
    return SentinelUrl(
        tuple(_addresses(hosts)),
        service,
        {name: value for name, value in options.items() if name not in ("host", "connection_class")},
        has_tls=scheme.startswith("rediss"),
    )


def is_redis_url(text: str) -> bool:
    """Return whether a URL has one of the supported forms, and only parameters that redis-py knows."""
    try:
        if sentinel_url := parse_sentinel_url(text):
            kind = SSLConnection if sentinel_url.has_tls else Connection
            ConnectionPool(kind, **sentinel_url.options).make_connection()
            return True
        parsed = parse_url(text)  # type: ignore[no-untyped-call]
        ConnectionPool.from_url(text).make_connection()  # checks the parameters; does not connect
    except (ValueError, TypeError, RedisError):
        return False
    return is_host(parsed.get("host")) or bool(parsed.get("path"))


def is_exposed_redis(url: str) -> bool:
    """Return whether Redis is on another machine, with neither a password nor a verified TLS connection."""
    options, has_tls, is_local = _describe(url)
    checks_certificate = options.get("ssl_cert_reqs") != "none" and options.get("ssl_check_hostname", True)
    return not (is_local or options.get("password") or (has_tls and checks_certificate))


def redis_password(url: str) -> str | None:
    """Return the password for Redis, if the URL has one."""
    options, _, _ = _describe(url)
    return options.get("password")


def is_unencrypted_redis(url: str) -> bool:
    """Return whether Redis is on another machine, without TLS."""
    _, has_tls, is_local = _describe(url)
    return not (is_local or has_tls)


def _describe(url: str) -> tuple[dict[str, Any], bool, bool]:
    """Return the options of connections, whether they have TLS, and whether they stay on this machine."""
    if sentinel_url := parse_sentinel_url(url):  # wherever they are, the primary may be elsewhere
        return sentinel_url.options, sentinel_url.has_tls, False
    options = parse_url(url)  # type: ignore[no-untyped-call]
    is_local = "path" in options or is_loopback(options.get("host", "localhost"))
    return options, url.startswith("rediss:"), is_local


def _addresses(hosts: str) -> Iterator[tuple[str, int]]:
    for entry in hosts.split(","):
        parts = urlsplit(f"//{entry}")
        if not is_host(parts.hostname) or parts.port == 0:
            raise ValueError(f"{entry!r} is not a host")
        assert parts.hostname
        yield parts.hostname, parts.port or SENTINEL_PORT
