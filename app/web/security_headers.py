"""Headers that every response has."""

from flask import Flask, Response, request

from app.web.error_handlers import request_id
from config import Config

CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"


_SET_BY_VIEWS = ("Content-Security-Policy", "Cache-Control")


def default_headers(config: Config) -> dict[str, str]:
    """Return the headers of every response. Views may set their own policy and caching."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Pages on other sites may neither embed the response nor keep a reference to its window.
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Content-Security-Policy": CONTENT_POLICY,
        "Cache-Control": "no-store",
    }
    if config.session_cookie_secure:
        headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
    return headers


def init_app(app: Flask, config: Config) -> None:
    """Add the headers to every response. `ErrorMiddleware` does so for its own."""
    defaults = default_headers(config)

    @app.after_request
    def add_headers(response: Response) -> Response:
        headers = response.headers
        headers["X-Request-ID"] = request_id()
        for name, value in defaults.items():
            if name not in _SET_BY_VIEWS or name not in headers:
                headers[name] = value
        if response.status_code == 204 or (response.status_code == 202 and not response.get_data()):
            headers.pop("Content-Type", None)  # there is no content
        if request.path.startswith("/api/"):
            # CORS headers depend on the Origin, even if there is none.
            response.vary.add("Origin")
        return response
