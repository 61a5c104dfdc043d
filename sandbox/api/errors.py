"""The Web API's refusals."""

from __future__ import annotations


class ApiError(Exception):
    """A refusal in the regular error shape.

    `reason` is only sent by the player; `challenge` is the value of www-authenticate.
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
    """A player command that cannot be done."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(status, f"Player command failed: {message}", reason)


def not_found() -> ApiError:
    return ApiError(404, "Resource not found")


def forbidden() -> ApiError:
    return ApiError(403, "Forbidden")
