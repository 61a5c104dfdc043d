"""Pauses for users' own applications: one that Spotify does not serve costs few calls, and delays no other.

An application is paused after a failure, for longer each time. After the pause, one attempt goes through, the
probe; all others of this application wait for its outcome. The pause is in the application's row, so that all
processes follow it. `app.spotify.tokens.breaker` pauses the refreshes of the deployment's application.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyAppRefused, SpotifyUnavailable
from app.infra import database
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import AccessToken, AppState, GrantState, MailKind, SpotifyApp, SpotifyUser, User
from app.models.access_token import LEASE
from app.models.times import LONGEST_WAIT, is_ahead, is_over
from app.models.token_refresh import Outcome
from app.spotify.clients.application import Application

log = logging.getLogger(__name__)

# The owner is told after this many refusals in a row: Spotify has refused valid clients before.
REFUSALS_BEFORE_EMAIL = 2


@dataclass(frozen=True)
class _Rule:
    """What a failure says about the application, and its pause: `first`, doubled by each further failure."""

    state: AppState
    first: timedelta
    longest: timedelta

    def pause(self, failures: int, retry_after: int | None) -> timedelta:
        """Return how long to pause after this many failures. `retry_after` is what Spotify asked for."""
        doubled = min(self.first * int(2 ** min(failures - 1, 20)), self.longest)
        return min(max(doubled, timedelta(seconds=retry_after or 0)), LONGEST_WAIT)


_RULES = {
    Outcome.MISCONFIGURED: _Rule(AppState.REFUSED, timedelta(minutes=1), timedelta(hours=1)),
    Outcome.RATE_LIMITED: _Rule(AppState.RATE_LIMITED, timedelta(seconds=30), timedelta(minutes=30)),
    Outcome.UNAVAILABLE: _Rule(AppState.UNAVAILABLE, timedelta(seconds=5), timedelta(minutes=10)),
}
# These show that Spotify accepts the application.
_PROOFS = (Outcome.REFRESHED, Outcome.INVALID_GRANT, Outcome.AGED)


def require_active(db: Session, application: SpotifyApp, now: datetime) -> bool:
    """Let a refresh through if the application is not paused, or as the probe. Returns whether it is one.

    Call it in the transaction that claims the refresh, so that a claim that fails uses up no probe.

    Raises:
        SpotifyAppRefused: It is paused because Spotify rejects it.
        SpotifyUnavailable: It is paused for another reason.
    """
    if application.state == AppState.ACTIVE:
        return False
    if is_paused(application, now) or not _take_probe(db, application, now):
        raise _error_for(application, now)
    return True


def is_paused(application: SpotifyApp, now: datetime) -> bool:
    """Return whether refreshes with this application have to wait until `paused_until`."""
    return application.state != AppState.ACTIVE and is_ahead(application.paused_until, now)


def _take_probe(db: Session, application: SpotifyApp, now: datetime) -> bool:
    """Take the probe of an application whose pause is over. Returns False if another caller was first.

    Either way, `paused_until` of the application is now when the next one may start.
    """
    is_due = sa.or_(SpotifyApp.paused_until.is_(None), is_over(SpotifyApp.paused_until, now))
    taken = db.execute(
        sa.update(SpotifyApp)
        .where(SpotifyApp.id == application.id, SpotifyApp.state != AppState.ACTIVE, is_due)
        .values(paused_until=now + LEASE)
        .execution_options(synchronize_session="evaluate")
    )
    return taken.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def require_not_refused(spotify_user_id: int) -> None:
    """Require that Spotify does not reject the application of a connection.

    Raises:
        SpotifyAppRefused: It does.
    """
    with reading() as db:
        state = db.scalar(
            sa.select(SpotifyApp.state)
            .join(SpotifyUser, SpotifyUser.spotify_app_id == SpotifyApp.id)
            .where(SpotifyUser.id == spotify_user_id)
        )
    if state == AppState.REFUSED:
        raise SpotifyAppRefused


def _error_for(application: SpotifyApp, now: datetime) -> SpotifyAppRefused | SpotifyUnavailable:
    if application.state == AppState.REFUSED:
        return SpotifyAppRefused()
    wait = (application.paused_until or now) - now
    return SpotifyUnavailable(retry_after=max(1, math.ceil(wait.total_seconds())))


def resume(db: Session, application: SpotifyApp) -> None:
    """End the pause of an application, and make its grants due."""
    application.state, application.paused_until = AppState.ACTIVE, None
    application.failures, application.failing_since = 0, None
    of_application = sa.select(SpotifyUser.id).where(SpotifyUser.spotify_app_id == application.id)
    connections = list(db.scalars(of_application))
    announce(db, connections=connections, best_effort=True)
    db.execute(
        sa.update(AccessToken)
        .where(
            AccessToken.spotify_user_id.in_(connections),
            AccessToken.client_id.is_not(None),
            AccessToken.state == GrantState.ACTIVE,
            AccessToken.due_at.is_not(None),  # it is in use
        )
        .values(not_before=None, due_at=database.db_now(db))
        .execution_options(synchronize_session=False)
    )


def end_outage(db: Session, since: datetime) -> None:
    """End the pauses of applications that have got no usable responses since then, because none has."""
    db.execute(
        sa.update(SpotifyApp)
        .where(SpotifyApp.state == AppState.UNAVAILABLE, SpotifyApp.failing_since >= since)
        .values(state=AppState.ACTIVE, paused_until=None, failures=0, failing_since=None)
        .execution_options(synchronize_session=False)
    )


class ApplicationPauses:
    """Pauses and resumes applications after attempts.

    An attempt with another secret than the current one, which its owner may have corrected since, changes
    nothing.

    `notify` emails a notice to a user, in the caller's transaction.
    """

    def __init__(self, notify: Callable[..., None]) -> None:
        self._notify = notify

    def record_outcome(
        self, tried: Application, outcome: Outcome, *, is_probe: bool, retry_after: int | None = None
    ) -> None:
        """Pause an application after a failure, or resume it after a probe that Spotify has accepted.

        Other attempts may have begun before the pause, so their success proves nothing.
        """
        if outcome in _RULES:
            rule = _RULES[outcome]
            self._change(partial(self._pause, tried, rule, retry_after, is_probe=is_probe))
        elif is_probe and outcome in _PROOFS:
            self._change(partial(_resume_if_paused, tried))

    def client_accepted(self, tried: Application) -> None:
        """Record that Spotify has accepted an application, in the exchange of a code."""
        self._change(partial(_resume_if_paused, tried))

    def _change(self, work: Callable[[Session], None]) -> None:
        """Update the application. Only logs errors: the caller's result must not be lost."""
        try:
            run_in_transaction(work)
        except sa.exc.SQLAlchemyError as error:
            log.warning("application_update_failed", extra={"reason": type(error).__name__})

    def _pause(
        self, tried: Application, rule: _Rule, retry_after: int | None, db: Session, *, is_probe: bool
    ) -> None:
        application = _locked_if_unchanged(db, tried)
        if application is None:
            return
        now = database.db_now(db)
        if not is_probe and is_paused(application, now):
            # It ran at the same time as the one that caused the pause, and counts as the same failure.
            until = now + rule.pause(1, retry_after)
            application.paused_until = max(application.paused_until or until, until)
            return
        if application.state == rule.state:
            application.failures += 1
        elif application.state != AppState.REFUSED:  # only an acceptance shows that it works again
            application.state, application.failures = rule.state, 1
            log.warning(
                "spotify_app_paused", extra={"spotify_app_id": application.id, "reason": rule.state.value}
            )
        application.failing_since = application.failing_since or now
        application.paused_until = now + rule.pause(application.failures, retry_after)
        if rule.state is AppState.REFUSED and application.failures == REFUSALS_BEFORE_EMAIL:
            self._notify(db, db.get_one(User, application.owner_id), MailKind.SPOTIFY_APP_REFUSED)


def _locked_if_unchanged(db: Session, tried: Application) -> SpotifyApp | None:
    """Return the row of an application, locked, unless it has been removed or registered again since."""
    row = db.get(SpotifyApp, tried.id, with_for_update=True)
    if row is None or (row.client_id, row.client_secret) != (tried.client_id, tried.stored_secret):
        return None
    return row


def _resume_if_paused(tried: Application, db: Session) -> None:
    application = _locked_if_unchanged(db, tried)
    if application is not None and application.state != AppState.ACTIVE:
        log.warning("spotify_app_resumed", extra={"spotify_app_id": application.id})
        resume(db, application)
