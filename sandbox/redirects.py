"""Spotify's rules for redirect URIs.

https everywhere; http only with a loopback IP literal; never `localhost`; other schemes for native apps.
A request must repeat a registered URI exactly, with one exception: a loopback literal registered without
a port matches any port.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import SplitResult, urlencode, urlsplit

LOOPBACK_LITERALS = ("127.0.0.1", "::1")


def is_insecure(uri: str) -> bool:
    """Return whether Spotify rejects this URI even if it is registered."""
    parts = _split(uri)
    if parts is None:
        return False
    host = parts.hostname
    return host == "localhost" or (parts.scheme == "http" and host not in LOOPBACK_LITERALS)


def is_malformed(uri: str) -> bool:
    """Return whether this is no absolute URI."""
    parts = _split(uri)
    return parts is None or not parts.scheme or (parts.scheme in ("http", "https") and not parts.hostname)


def is_registered(uri: str, registered: Iterable[str]) -> bool:
    """Return whether a registered URI allows this one."""
    return any(uri == known or _differs_only_in_port(uri, known) for known in registered)


def _differs_only_in_port(uri: str, known: str) -> bool:
    asked, allowed = _split(uri), _split(known)
    if asked is None or allowed is None:
        return False
    if allowed.hostname not in LOOPBACK_LITERALS or ":" in _after_host(allowed):
        return False
    port = _after_host(asked)
    has_port = port[:1] == ":" and port[1:].isascii() and port[1:].isdigit()
    return has_port and uri.replace(port, "", 1) == known and asked.hostname == allowed.hostname


def _after_host(parts: SplitResult) -> str:
    """Return what follows the host in the authority: `:8080`, or nothing."""
    return (
        parts.netloc.rpartition("]")[2] if "]" in parts.netloc else parts.netloc[len(parts.hostname or "") :]
    )


def _split(uri: str) -> SplitResult | None:
    """Return the parts of a URI, or None if it is invalid."""
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 - raises on a port that is no number
    except ValueError:
        return None
    return parts


def add_to_query(uri: str, parameters: dict[str, str]) -> str:
    """Return the redirect URI with the response parameters added to its query."""
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(parameters)}"
