"""What is limited for each client id by itself: Spotify counts calls by client id.

The deployment's application has its own limits, and so does each application that a user has registered. One
that is rate limited, or that Spotify does not serve, delays no other.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import redis

from app.resilience.circuit_breaker import CircuitBreaker
from app.spotify.clients.application import ApplicationKind
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from config import Config

# Users' applications that are remembered. The waits of the others are in Redis.
MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class ClientLimits:
    """The limits of one client id, and whose application it is."""

    rate_limiter: SpotifyRateLimiter
    kind: ApplicationKind = ApplicationKind.DEPLOYMENT
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)


class ClientLimitsRegistry:
    """Finds the limits of a client id. Threads may share it."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self.deployment = ClientLimits(
            SpotifyRateLimiter(client, config.spotify_client_id, config.gateway_budget)
        )
        self._lock = threading.Lock()
        self._own: OrderedDict[str, ClientLimits] = OrderedDict()  # used last, last

    def of(self, client_id: str | None) -> ClientLimits:
        """Return the limits of a user's application, or the deployment's for None."""
        if client_id is None:
            return self.deployment
        with self._lock:
            limits = self._own.pop(client_id, None)
            if limits is None:
                # The setting GATEWAY_BUDGET is about the deployment's application.
                rate_limiter = SpotifyRateLimiter(self._client, client_id, budget=None)
                limits = ClientLimits(rate_limiter, ApplicationKind.OWN)
            self._own[client_id] = limits
            if len(self._own) > MAX_REMEMBERED:
                self._own.popitem(last=False)
            return limits
