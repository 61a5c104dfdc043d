"""The client's address, which throttling, sessions, and logs use. `request.remote_addr` always has one.

Proxies report it in X-Forwarded-For in several formats: Azure adds a port, others add brackets and quotes,
and some send a word such as `unknown` (RFC 7239 section 6).
"""

import ipaddress
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from flask import request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The peer of a Unix socket has no address. It is on this machine.
THIS_MACHINE = ipaddress.IPv4Address("127.0.0.1")


class ClientAddress:
    """WSGI middleware that sets REMOTE_ADDR to the client's address, as reported by trusted proxies."""

    def __init__(self, app: "WSGIApplication", trusted_proxies: int) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies
        self._reported: set[str] = set()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Set REMOTE_ADDR and pass the request on."""
        count = self._trusted_proxies
        peer = str(environ.get("REMOTE_ADDR", ""))
        forwarded = str(environ.get("HTTP_X_FORWARDED_FOR", ""))
        # Each proxy appends an entry, so the trusted ones are at the end, the farthest proxy first.
        trusted = forwarded.rsplit(",", count)[-count:] if forwarded and count else []
        if forwarded and not count:
            self._report_once("header_not_trusted")
        elif forwarded and len(trusted) < count:
            self._report_once("fewer_proxies")
        # If a proxy reports no valid address, use its own.
        environ["REMOTE_ADDR"] = _first_address((*trusted, peer))
        return self._app(environ, start_response)

    def _report_once(self, reason: str) -> None:
        if reason not in self._reported:
            self._reported.add(reason)
            log.warning("proxy_settings_mismatch", extra={"reason": reason})


@lru_cache(maxsize=256)
def _first_address(entries: tuple[str, ...]) -> str:
    """Return the first address in entries of X-Forwarded-For. The server limits their length."""
    known = (parse(text) for text in entries)
    return str(next((address for address in known if address), THIS_MACHINE))


def parse(text: str) -> Address | None:
    """Return the address in an entry of X-Forwarded-For, without its port, brackets, quotes, and zone."""
    text = text.strip(' \t"')
    if len(text) > 100:
        return None
    port = r":(?:\d{1,5}|_[\w.-]+)"  # the second form hides it (RFC 7239)
    bracketed = re.fullmatch(rf"\[([^\]]*)\](?:{port})?", text)
    with_port = re.fullmatch(rf"([0-9.]+){port}", text)
    match = bracketed or with_port
    try:
        address = ipaddress.ip_address((match[1] if match else text).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return None if address.is_unspecified else address


def network(address: Address) -> str:
    """Return the network of one household, usually: an IPv4 address, or the /64 of an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def client_network() -> str:
    """Return the network that the current request is counted under."""
    return network(parse(request.remote_addr or "") or THIS_MACHINE)
