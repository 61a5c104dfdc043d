"""Client for Backline: Spotify libraries with a personal access token."""

from backline_client.client import Backline
from backline_client.errors import ApiError, LoginError

__all__ = ["ApiError", "Backline", "LoginError"]
