"""Metrics about sessions. Redis forgets those that time out, so no one counts their end."""

from prometheus_client import Counter

from app.infra.metrics import best_effort
from app.web.sessions.data import SessionData

_STARTED = Counter(
    "backline_sessions_started",
    "Sessions that got an id: of accounts, of visitors with a connection, and of visitors without one.",
    ["kind"],
)
_ENDED = Counter("backline_sessions_ended", "Sessions that were ended before they timed out.")
_started = {kind: _STARTED.labels(kind) for kind in ("account", "connected_visitor", "visitor")}


def count_stored(data: SessionData, *, is_new: bool) -> None:
    """Count a session that was stored, if it is a new one."""
    if not is_new:
        return
    kind = "visitor" if data.is_empty else "connected_visitor" if data.user_id is None else "account"
    with best_effort():
        _started[kind].inc()


def count_ended(number: int) -> None:
    """Count sessions that were deleted."""
    with best_effort():
        _ENDED.inc(number)
