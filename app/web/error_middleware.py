"""Responds to errors that Flask's error handlers do not see."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from app.web.error_handlers import document, known_error, log_failure, request_id_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ErrorMiddleware:
    """WSGI middleware for errors in opening a session, in `after_request` functions, and in teardown.

    Flask raises them here, because `PROPAGATE_EXCEPTIONS` is set.
    """

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Pass a request on. Teardown follows the response, so its start is held back until then."""
        started: list[Any] = []
        try:
            body = self._app(environ, lambda *response: started.append(response))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - nothing else would respond
            log_failure(error, request_id=request_id_of(environ))
            return document(known_error(error), environ)(environ, start_response)
        start_response(*started[-1])
        return body
