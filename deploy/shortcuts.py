"""Less work for gunicorn in the usual case: a request without a body, and a response of one piece.

The arbiter imports this module, so it must not import the app (see `deploy/worker.py`).
"""

import ipaddress
import time
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http import message, wsgi  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]

# Headers of all our responses (app/web/security_headers.py).
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
)
# Need no check for characters that would end the header.
_VALID = {
    *SECURITY_HEADERS,
    ("Strict-Transport-Security", "max-age=31536000; includeSubDomains"),
    ("Content-Type", "application/json"),
    ("Vary", "Cookie, Origin"),
    ("Vary", "Origin"),
}

_is_in_allow_list = message._ip_in_allow_list  # noqa: SLF001


@lru_cache(maxsize=256)
def _is_peer_allowed(address: str, allowed: tuple[str, ...]) -> bool:
    networks = [ipaddress.ip_network(entry) for entry in allowed if entry != "*"]
    return bool(_is_in_allow_list(address, allowed, networks))


def _cached_is_in_allow_list(address: str, allowed: Iterable[str], _networks: object) -> bool:
    return _is_peer_allowed(address, tuple(allowed))


_http_date = lru_cache(maxsize=1)(util.http_date)


def _cached_http_date(timestamp: float | None = None) -> str:
    return str(_http_date(int(time.time() if timestamp is None else timestamp)))


class Response(wsgi.Response):  # type: ignore[misc]  # it has no types
    """A response that is sent in one piece if its body is, which saves a system call and a packet."""

    headers_sent: bool

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Check headers, except for well-known ones."""
        super().process_headers([header for header in headers if header not in _VALID])
        self.headers += [header for header in headers if header in _VALID]

    def write(self, data: Any) -> None:
        """Send a part of the body, and the headers before the first one."""
        is_whole = isinstance(data, bytes) and len(data) == self.response_length
        if not is_whole or self.headers_sent or self._omits_body:
            super().write(data)
            return
        lines = self.default_headers()
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        head = "".join([*lines, "\r\n"]).encode("latin-1")
        self.headers_sent, self.sent = True, len(data)
        util.write(self.sock, head + data)


_finish_body = RequestParser.finish_body


def _finish_unread_body(parser: Any, *arguments: Any, **options: Any) -> bool:
    """Discard what is left of a body. If nothing is, do not change the timeout of the socket three times."""
    body = getattr(parser.mesg, "body", None)
    if (
        body is not None
        and not body.failed
        and isinstance(body.reader, LengthReader)
        and body.reader.length == 0
    ):
        return True
    return bool(_finish_body(parser, *arguments, **options))


def remember_settings(config: Any) -> None:
    """Make settings plain attributes. gunicorn reads twenty for each request, with two calls each."""
    config.__dict__.update({name: setting.get() for name, setting in config.settings.items()})


def install() -> None:
    """Replace the parts of gunicorn that this module has shortcuts for."""
    RequestParser.finish_body = _finish_unread_body
    message._ip_in_allow_list = _cached_is_in_allow_list  # noqa: SLF001
    util.http_date = _cached_http_date
    wsgi.Response = Response
    wsgi.WSGIErrorsWrapper = cache(wsgi.WSGIErrorsWrapper)  # the same for all requests
