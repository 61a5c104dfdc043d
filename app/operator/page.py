"""What the page for operators shows of the numbers, and how."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from app.models import GrantState
from app.models.token_refresh import Outcome
from app.operator.overview import Limits, Overview, TokenNumbers
from app.operator.plots import Plot, Series, stacked_bars
from app.spotify.tokens.metrics import WAITING

# Names, colors (classes in the style sheet), and what belongs to them.
_REFRESHES = (
    ("refreshed", "good", (Outcome.REFRESHED,)),
    ("superseded by another", "neutral", (Outcome.SUPERSEDED,)),
    ("failed, to be repeated", "warning", (Outcome.UNAVAILABLE, Outcome.RATE_LIMITED, Outcome.MISCONFIGURED)),
    ("rejected by Spotify", "bad", (Outcome.INVALID_GRANT, Outcome.AGED)),
)
_SIGN_INS = (
    ("signed in", "good", ("login:ok",)),
    ("wrong password", "warning", ("login:wrong_password",)),
    ("throttled", "bad", ("login:throttled",)),
)
_STATES = (
    (GrantState.ACTIVE, "active", "good"),
    (GrantState.SUSPECT, "suspect", "warning"),
    (GrantState.REAUTHORIZATION_REQUIRED, "reauthorization required", "bad"),
    (WAITING, "waiting for an application", "warning"),
)
_THROTTLED = "throttled:"


def variables(overview: Overview) -> dict[str, Any]:
    """Return the variables of the template."""
    return {
        "overview": overview,
        "duration": duration,
        **({} if overview.tokens is None else _tokens(overview, overview.tokens)),
        **({} if overview.limits is None else _limits(overview, overview.limits)),
    }


def duration(seconds: float) -> str:
    """Return a duration as operators would say it, such as `3 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{timedelta(seconds=seconds).days} days"


def _tokens(overview: Overview, tokens: TokenNumbers) -> dict[str, Any]:
    total = max(1, sum(tokens.connections.values()))
    counted = [counts or {} for counts in tokens.refreshes]
    return {
        "states": [
            (name, tokens.connections[state], round(tokens.connections[state] / total * 100, 1), color)
            for state, name, color in _STATES
            if state in tokens.connections
        ],
        "refreshes": _plot(overview, _REFRESHES, counted),
        "is_counting": None in tokens.refreshes,
    }


def _limits(overview: Overview, limits: Limits) -> dict[str, Any]:
    names = sorted({name for counts in limits.events for name in counts if name.startswith(_THROTTLED)})
    throttled = [(name.removeprefix(_THROTTLED), "bad", (name,)) for name in names]
    return {
        "sign_ins": _plot(overview, _SIGN_INS, limits.events),
        "throttled": _plot(overview, throttled, limits.events),
    }


def _plot(
    overview: Overview,
    series: Sequence[tuple[str, str, Sequence[str]]],
    counts: Sequence[Mapping[str, int]],
) -> Plot:
    return stacked_bars(
        overview.hours,
        [
            Series(name, color, [sum(hour.get(key, 0) for key in keys) for hour in counts])
            for name, color, keys in series
        ],
    )
