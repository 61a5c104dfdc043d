"""Metrics about sign-ins with a password."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter

from app.errors import InvalidCredentials, TooManyAttempts
from app.infra.hourly_counts import HourlyCounts
from app.infra.metrics import best_effort

OUTCOMES = ("ok", "wrong_password", "throttled", "unavailable")
_LOGINS = Counter("backline_logins", "Attempts to sign in with a password.", ["outcome"])
_logins = {outcome: _LOGINS.labels(outcome) for outcome in OUTCOMES}


@contextmanager
def counted_login(hourly: HourlyCounts) -> Iterator[None]:
    """Count the attempt to sign in that the block makes, by its outcome."""
    outcome = "unavailable"
    try:
        yield
        outcome = "ok"
    except InvalidCredentials:
        outcome = "wrong_password"
        raise
    except TooManyAttempts:
        outcome = "throttled"
        raise
    finally:
        with best_effort():
            _logins[outcome].inc()
        if outcome != "unavailable":  # probably because Redis is
            hourly.add(f"login:{outcome}")
