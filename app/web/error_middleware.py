"""Responds to errors that Flask's error handlers do not see."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from app.web import cors
from app.web.error_handlers import document, known_error, log_failure, request_id_of
from app.web.security_headers import default_headers
from config import Config

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ErrorMiddleware:
    """WSGI middleware for errors in opening a session, in `after_request` functions, and in teardown.

    Flask raises them here, because `PROPAGATE_EXCEPTIONS` is set.
    """

    def __init__(self, app: "WSGIApplication", config: Config) -> None:
        self._app = app
        self._config = config

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Pass a request on. Teardown follows the response, so its start is held back until then."""
        started: list[Any] = []
        try:
            body = self._app(environ, lambda *response: started.append(response))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - nothing else would respond
            log_failure(error, request_id=request_id_of(environ))
            response = document(known_error(error), environ)
            response.headers.update(default_headers(self._config))
            response.headers.update(cors.response_headers(environ, self._config))
            return response(environ, start_response)
        start_response(*started[-1])
        return body
