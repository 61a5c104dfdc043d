"""Headers that every response has."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

from app.web.error_handlers import request_id_of
from app.web.paths import is_gateway
from config import Config

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"

_ALWAYS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    # Pages on other sites may neither embed the response nor keep a reference to its window.
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]
_HTTPS_ONLY = ("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
# Views may set their own policy and caching.
_DEFAULTS = [("Content-Security-Policy", CONTENT_POLICY), ("Cache-Control", "no-store")]


def init_app(app: Flask, config: Config) -> None:
    """Add the headers to every response."""
    app.wsgi_app = SecurityHeaders(app.wsgi_app, config)  # type: ignore[method-assign]


class SecurityHeaders:
    """WSGI middleware that adds the headers, also to responses that Flask does not make."""

    def __init__(self, app: "WSGIApplication", config: Config) -> None:
        self._app = app
        self._always = [*_ALWAYS, *([_HTTPS_ONLY] if config.session_cookie_secure else [])]
        self._replaced = {"x-request-id", *(name.lower() for name, _ in self._always)}
        self._known = self._replaced | {name.lower() for name, _ in _DEFAULTS}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Pass a request on, and add the headers to its response."""

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            completed = self._complete(headers)
            completed.append(("X-Request-ID", request_id_of(environ)))
            if status.startswith(("204", "202")) and not is_gateway(environ):
                completed = _without_unused_type(status, completed)
            return start_response(status, completed, *error)

        return self._app(environ, start)

    def _complete(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        given = self._known.intersection([name.lower() for name, _ in headers])
        if not given:
            return [*headers, *self._always, *_DEFAULTS]
        own = [(name, value) for name, value in headers if name.lower() not in self._replaced]
        missing = [(name, value) for name, value in _DEFAULTS if name.lower() not in given]
        return [*own, *self._always, *missing]


def _without_unused_type(status: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Remove Content-Type from a response without a body."""
    if status.startswith("202") and ("Content-Length", "0") not in headers:
        return headers
    return [(name, value) for name, value in headers if name != "Content-Type"]
