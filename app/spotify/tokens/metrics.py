"""Metrics about connections and refreshes. They come from the database, so they include every scheduler."""

import time
from collections.abc import Iterator
from datetime import timedelta

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.infra import database
from app.infra.database import reading
from app.models import AccessToken, AppState, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.spotify.applications.lookup import count_by_state
from app.spotify.clients.application import ApplicationKind
from app.spotify.tokens import breaker
from app.spotify.tokens.breaker_rules import Reason

# Counting a million connections takes a few tenths of a second.
CACHE_SECONDS = 15.0
RECENT = timedelta(minutes=5)
# The state of connections that need the deployment's application, which is gone.
WAITING = "waiting"


class ConnectionCollector(Collector):
    """Reports connections by state, the refresh queue, and recent refreshes. Needs an application context.

    `has_application` says whether the deployment has one.
    """

    def __init__(self, *, has_application: bool) -> None:
        self._has_application = has_application
        self._metrics: list[Metric] = []
        self._valid_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """Read the numbers, or repeat those of some seconds ago."""
        if time.monotonic() >= self._valid_until:
            self._metrics = [_connections(self._has_application), _applications(), *_refreshes(), _breakers()]
            self._valid_until = time.monotonic() + CACHE_SECONDS
        yield from self._metrics


def count_connections(*, has_application: bool) -> dict[str, int]:
    """Return how many connections there are in each state.

    If the deployment has no application, those that were made with one and have not ended are `waiting`.
    """
    states: list[str] = list(GrantState)
    state: sa.ColumnElement[str] = sa.type_coerce(AccessToken.state, sa.String)
    if not has_application:
        states.append(WAITING)
        not_ended = AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED
        state = sa.case((sa.and_(AccessToken.client_id.is_(None), not_ended), WAITING), else_=state)
    counted: sa.Select[str, int] = sa.select(state.label("counted_as"), sa.func.count())
    with reading() as db:
        found = dict(db.execute(counted.group_by("counted_as")).all())
    return {str(name): found.get(name, 0) for name in states}


def _connections(has_application: bool) -> Metric:
    family = GaugeMetricFamily("backline_connections", "Connections by state.", labels=["state"])
    for state, count in count_connections(has_application=has_application).items():
        family.add_metric([state], count)
    return family


def _applications() -> Metric:
    family = GaugeMetricFamily(
        "backline_spotify_apps", "Applications that users have registered, by state.", labels=["state"]
    )
    found = count_by_state()
    for state in AppState:
        family.add_metric([state.value], found.get(state.value, 0))
    return family


def _refreshes() -> Iterator[Metric]:
    now = database.read_db_now()
    is_own = TokenRefresh.spotify_app_id.is_not(None).label("is_own")
    recent = (
        sa.select(TokenRefresh.outcome, is_own, sa.func.count())
        .where(TokenRefresh.started_at > now - RECENT)
        .group_by(TokenRefresh.outcome, is_own)
    )
    with reading() as db:
        oldest = db.execute(sa.select(sa.func.min(AccessToken.due_at))).scalar_one()
        counts = {(outcome, bool(own)): count for outcome, own, count in db.execute(recent)}
    late = (now - oldest).total_seconds() if oldest is not None else 0.0
    yield GaugeMetricFamily(
        "backline_oldest_due_refresh_seconds",
        "For how long the oldest due refresh has been waiting; 0 if none is due.",
        max(0.0, late),
    )
    family = GaugeMetricFamily(
        "backline_recent_refreshes",
        "Refresh attempts of the last five minutes by outcome.",
        labels=["outcome", "application"],
    )
    for outcome in Outcome:
        for kind in ApplicationKind:
            count = counts.get((outcome.value, kind is ApplicationKind.OWN), 0)
            family.add_metric([outcome.value, kind.value], count)
    yield family


def _breakers() -> Metric:
    found = {row.name for row in breaker.open_breakers()}
    family = GaugeMetricFamily(
        "backline_refresh_breaker_open", "Whether refreshing is paused for this reason.", labels=["reason"]
    )
    for reason in Reason:
        family.add_metric([reason.value], float(reason.value in found))
    return family
