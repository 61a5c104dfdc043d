"""What tests of rate limits and of the budget have in common."""

from flask import Flask
from werkzeug.test import TestResponse

from app.spotify.clients.rate_limit import SpotifyRateLimiter
from config import Config
from tests.helpers.flows import slug
from tests.helpers.sandbox_client import SandboxClient


def retry_after_of(response: TestResponse) -> int:
    """Return the Retry-After of a 429 problem."""
    assert (response.status_code, slug(response)) == (429, "spotify-rate-limited")
    return int(response.headers["Retry-After"])


def seconds_left(seconds: int) -> range:
    """Return this many seconds or a little less, because some may have passed."""
    return range(max(1, seconds - 20), seconds + 1)


def calls(sandbox: SandboxClient) -> int:
    """Return how many calls to the Web API there have been."""
    return len([call for call in sandbox.calls() if call["path"].startswith("/v1/")])


def limiter_with(env: dict[str, str], app: Flask, **settings: str) -> SpotifyRateLimiter:
    """Return the limiter of another process with the same Redis."""
    config = Config.from_env(env | settings)
    return SpotifyRateLimiter(
        app.extensions["backline"].redis, config.spotify_client_id, config.gateway_budget
    )
