"""The errors of this package. All other exceptions come from `requests`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests


class ApiError(Exception):
    """The API responded with an error (RFC 9457). Check `slug` in code, and show `title` and `detail`."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: int | None = None) -> None:
        self.status = status
        self.slug = str(problem.get("type", "")).removeprefix("/problems/")
        self.title = str(problem.get("title", f"HTTP {status}"))
        self.detail = str(problem.get("detail", ""))
        self.errors: dict[str, list[str]] = problem.get("errors", {})
        """422 only: the messages for each field."""
        self.retry_after = retry_after
        """When to try again, in seconds, if the response says so."""
        self.request_id = str(problem.get("request_id", ""))
        """The log of the server has the details under this id."""
        super().__init__(f"{self.title}. {self.detail} ({self.slug})" if self.slug else self.title)


class LoginError(Exception):
    """A login was not approved. `error` is a code of RFC 8628, such as `access_denied` or `expired_token`."""

    def __init__(self, error: str, description: str = "") -> None:
        self.error = error
        super().__init__(f"{error}: {description}" if description else error)


def raise_for_problem(response: requests.Response) -> None:
    """Raise an `ApiError` if the response is an error."""
    if response.ok:
        return
    seconds = response.headers.get("Retry-After", "")
    raise ApiError(response.status_code, members_of(response), int(seconds) if seconds.isdigit() else None)


def members_of(response: requests.Response) -> dict[str, Any]:
    """Return the members of a JSON object, or none if the response is something else."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
