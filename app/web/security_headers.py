"""Headers that every response has."""

from flask import Flask, Response, request

from app.web.error_handlers import request_id
from config import Config

CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"


def init_app(app: Flask, config: Config) -> None:
    """Add them."""

    @app.after_request
    def add_headers(response: Response) -> Response:
        headers = response.headers
        headers["X-Request-ID"] = request_id()
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        # Pages on other sites may neither embed the response nor keep a reference to its window.
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
        headers.setdefault("Cache-Control", "no-store")
        if config.session_cookie_secure:
            headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
        if response.status_code == 204 or (response.status_code == 202 and not response.get_data()):
            headers.pop("Content-Type", None)  # there is no content
        if request.path.startswith("/api/"):
            # CORS headers depend on the Origin, even if there is none.
            response.vary.add("Origin")
        return response
