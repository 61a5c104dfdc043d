"""The forms of REDIS_URL: one server, Redis Sentinel, which knows the current primary, or a Redis Cluster."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool, RedisError
from redis.connection import Connection, SSLConnection, parse_url

from app.settings.urls import is_host, is_loopback

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
SENTINEL_PORT, PORT = 26379, 6379

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://user:password@host:26379,host:26379/service/0`, parsed.

    Attributes:
        sentinels: The address of each Sentinel.
        service: The name under which they monitor the primary.
        options: The options of connections to the primary, such as `db` and `password`.
        has_tls: Whether connections to the primary and to Sentinels are encrypted.
    """

    sentinels: tuple[Address, ...]
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
        tuple(_addresses(hosts, SENTINEL_PORT)),
        service,
        {name: value for name, value in options.items() if name not in ("host", "connection_class")},
        has_tls=scheme.startswith("rediss"),
    )


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """`redis+cluster://user:password@host:7001,host:7002`, parsed.

    Attributes:
        nodes: The addresses of some nodes. They know the others.
        options: The options of connections, such as `password`.
        has_tls: Whether connections are encrypted.
    """

    nodes: tuple[Address, ...]
    options: dict[str, Any]
    has_tls: bool


def parse_cluster_url(url: str) -> ClusterUrl | None:
    """Parse a URL of a Redis Cluster. Returns None if it has another scheme.

    Raises:
        ValueError: A host or a port is missing or malformed, or there is a database: clusters have one only.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in CLUSTER_SCHEMES:
        return None
    parts = urlsplit(f"//{rest}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    options = parse_url(f"{CLUSTER_SCHEMES[scheme]}://{credentials}{at}localhost{query}")  # type: ignore[no-untyped-call]
    if parts.path.strip("/") not in ("", "0") or options.get("db"):
        raise ValueError("a cluster has only database 0")
    dropped = ("host", "port", "db", "connection_class")
    return ClusterUrl(
        tuple(_addresses(hosts, PORT)),
        {name: value for name, value in options.items() if name not in dropped},
        has_tls=scheme.startswith("rediss"),
    )


def is_redis_url(text: str) -> bool:
    """Return whether a URL has one of the supported forms, and only parameters that redis-py knows."""
    try:
        if several := parse_sentinel_url(text) or parse_cluster_url(text):
            kind = SSLConnection if several.has_tls else Connection
            ConnectionPool(kind, **several.options).make_connection()
            return True
        parsed = parse_url(text)  # type: ignore[no-untyped-call]
        ConnectionPool.from_url(text).make_connection()  # checks the parameters; does not connect
    except (ValueError, TypeError, RedisError):
        return False
    if parsed.get("path"):
        return True
    # redis-py would use database 0 in place of a name, such as that of Sentinels' service.
    return is_host(parsed.get("host")) and re.fullmatch(r"/?[0-9]*", urlsplit(text).path) is not None


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
    if several := parse_sentinel_url(url) or parse_cluster_url(url):  # the primary may be anywhere
        return several.options, several.has_tls, False
    options = parse_url(url)  # type: ignore[no-untyped-call]
    is_local = "path" in options or is_loopback(options.get("host", "localhost"))
    return options, url.startswith("rediss:"), is_local


def _addresses(hosts: str, default_port: int) -> Iterator[Address]:
    for entry in hosts.split(","):
        parts = urlsplit(f"//{entry}")
        if not is_host(parts.hostname) or parts.port == 0:
            raise ValueError(f"{entry!r} is not a host")
        assert parts.hostname
        yield parts.hostname, parts.port or default_port
