"""Errors after the last error handler: answered and logged all the same, once each."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from app.errors import ServiceUnavailable
from app.web.error_handlers import document, id_of, known_error, respond

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)


class LastResort:
    """Answers errors that come when nothing of the application's can answer any more.

    Those are an error in finishing a request (`after_request`, saving the session, teardown), and
    one in finishing the answer to an error. Each is logged once.
    """

    def __init__(self, app: Flask) -> None:
        self._app, self._wsgi = app, app.wsgi_app
        self._finish, self._handle = app.process_response, app.handle_exception
        app.wsgi_app = self  # type: ignore[method-assign]
        app.process_response = self.finish  # type: ignore[method-assign]
        app.handle_exception = self.handle  # type: ignore[assignment]
        app.log_exception = self.log  # type: ignore[method-assign]

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        begun: list[Any] = []
        try:
            # Teardown comes after the answer was made, which is held back until that is over.
            body = self._wsgi(environ, lambda *answer: begun.append(answer))  # type: ignore[arg-type]
        except Exception as error:
            log.exception("request_failed", extra={"request_id": id_of(environ)})
            return document(known_error(error), environ)(environ, start_response)
        start_response(*begun[-1])
        return body

    def handle(self, error: Exception) -> Response:
        """Answer what no handler took; without a traceback where it was foreseen."""
        request.environ["backline.failed"] = True
        known = known_error(error)
        if not isinstance(known, ServiceUnavailable):
            return self._handle(error)
        log.error("dependency_unavailable", extra={"reason": type(error.__cause__ or error).__name__})
        return self._app.finalize_request(respond(known), from_error_handler=True)

    def log(self, exc_info: Any) -> None:
        """Log what nobody foresaw. Flask's own line has the path in it, which the caller chose."""
        log.error("request_failed", exc_info=exc_info)

    def finish(self, response: Response) -> Response:
        """What is done to every answer. Where that was the error, it would only fail again."""
        try:
            return self._finish(response)
        except Exception:
            if "backline.failed" not in request.environ:
                raise
            return response


def init_app(app: Flask) -> None:
    LastResort(app)
