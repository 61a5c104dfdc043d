"""The cookie that carries a session's id."""

from typing import Any

from flask import Request, Response

from config import Config


class SessionCookie:
    """Reads, sets, and deletes the cookie, always with the same attributes."""

    def __init__(self, config: Config) -> None:
        self._name = config.session_cookie_name
        self._prefix = f"{self._name}="
        self._old_name = config.old_session_cookie_name
        self._attributes: dict[str, Any] = {
            "path": "/",
            "secure": config.session_cookie_secure,
            "httponly": True,
            "samesite": config.session_cookie_samesite,
            # Browsers block unpartitioned cookies in frames and fetches from other sites (CHIPS).
            "partitioned": config.session_cookie_samesite == "None",
        }

    def read(self, request: Request) -> tuple[str, bool]:
        """Return the id in a request's cookie, or "", and whether the cookie has the old name."""
        header = request.environ.get("HTTP_COOKIE", "")
        if header.startswith(self._prefix) and ";" not in header and '"' not in header:
            return header[len(self._prefix) :], False  # the only cookie, which needs no parser
        sid = request.cookies.get(self._name)
        if sid is not None:
            return sid, False
        return self.read_old(request), True

    def read_old(self, request: Request) -> str:
        """Return the id in the cookie with the old name, or ""."""
        return request.cookies.get(self._old_name, "") if self._old_name is not None else ""

    def set(self, request: Request, response: Response, sid: str, *, max_age: int) -> None:
        """Set the cookie, and delete the one with the old name if the browser still has it."""
        response.vary.add("Cookie")
        response.set_cookie(self._name, sid, max_age=max_age, **self._attributes)
        self._delete(self._old_name, request, response)

    def delete(self, request: Request, response: Response) -> None:
        """Delete the cookie, under either name."""
        for name in (self._name, self._old_name):
            self._delete(name, request, response)

    def _delete(self, name: str | None, request: Request, response: Response) -> None:
        if name is not None and name in request.cookies:
            response.delete_cookie(name, **self._attributes)
