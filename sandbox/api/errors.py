"""Errors of the Web API."""

from __future__ import annotations


class ApiError(Exception):
    """An error in the regular format.

    Only the player sends `reason`. `challenge` is the value of WWW-Authenticate.
    """

    def __init__(
        self, status: int, message: str, reason: str | None = None, challenge: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.challenge = challenge


class PlayerError(ApiError):
    """A player command that cannot be carried out."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(status, f"Player command failed: {message}", reason)


def not_found() -> ApiError:
    """Return a 404."""
    return ApiError(404, "Resource not found")


def forbidden() -> ApiError:
    """Return a 403."""
    return ApiError(403, "Forbidden")
