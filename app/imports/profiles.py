"""Asks Spotify whose grants were imported, once each has been refreshed.

An import names a Spotify account, or only the account here that owns the connection. If the grant turns out
to be another Spotify account's, the connection is deleted.
"""

import logging
import threading
import time
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import BacklineError
from app.infra import database
from app.infra.database import run_in_transaction
from app.infra.row_versions import announce
from app.models import AccessToken, GrantState, SpotifyUser
from app.spotify.clients.errors import RateLimited, SpotifyError, SpotifyTransportError
from app.spotify.clients.profile import Profile
from app.spotify.clients.web_api import SpotifyWebApi
from app.spotify.gateway.cache import ResponseCache
from app.spotify.ownership import known_account, update_profile
from app.spotify.tokens.refresh import GrantEnded
from app.spotify.tokens.service import TokenService

log = logging.getLogger(__name__)

# How long one run may take. The scheduler starts it again after 30 seconds.
_MAX_RUN_SECONDS = 20.0
# When to ask again if a call has failed, or if the process was killed.
_RETRY_AFTER = timedelta(hours=1)
_BATCH = 20


class ImportedProfiles:
    """Completes imported connections. Any number of processes may share the work."""

    def __init__(self, tokens: TokenService, web_api: SpotifyWebApi, cache: ResponseCache) -> None:
        self._tokens = tokens
        self._web_api = web_api
        self._cache = cache

    def run(self, stopping: threading.Event) -> int:
        """Complete the connections that are due, one after another. Returns how many it has asked about."""
        until, count = time.monotonic() + _MAX_RUN_SECONDS, 0
        while found := run_in_transaction(_claim):
            for spotify_user_id in found:
                if time.monotonic() > until or stopping.is_set():
                    return count
                if not self._complete(spotify_user_id):
                    return count
                count += 1
        return count

    def _complete(self, spotify_user_id: int) -> bool:
        """Complete a connection. Returns False if Spotify accepts no calls now."""
        try:
            token = self._tokens.access_token_for(spotify_user_id)
            profile = self._web_api.get_profile(token.access_token)
        except GrantEnded:
            self._store(spotify_user_id, None, None)
        except (RateLimited, SpotifyTransportError):
            return False
        except (BacklineError, SpotifyError) as error:
            reason = str(error) or type(error).__name__
            log.warning(
                "imported_profile_failed", extra={"spotify_user_id": spotify_user_id, "reason": reason}
            )
        else:
            self._store(spotify_user_id, token.version[0], profile)
        return True

    def _store(self, spotify_user_id: int, grant_id: str | None, profile: Profile | None) -> None:
        """Store a profile, or that there will be none because the grant has ended."""
        if run_in_transaction(lambda db: _store(db, spotify_user_id, grant_id, profile)):
            self._cache.drop(spotify_user_id)
            log.warning("imported_connection_deleted", extra={"spotify_user_id": spotify_user_id})


def _claim(db: Session) -> list[int]:
    """Return connections that are due and refreshed, or have ended. Other processes skip them for a while."""
    now = database.db_now(db)
    is_decided = sa.or_(
        AccessToken.access_token.is_not(None), AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED
    )
    is_due = SpotifyUser.profile_due_at <= now
    candidates = (
        sa.select(SpotifyUser.id)
        .join(AccessToken, AccessToken.spotify_user_id == SpotifyUser.id)
        .where(is_due, is_decided)
        .order_by(SpotifyUser.profile_due_at)
        .limit(_BATCH)
    )
    # In a separate statement: the join would lock every grant that still waits for its first refresh.
    ids = SpotifyUser.id.in_(list(db.scalars(candidates)))
    found = list(db.scalars(sa.select(SpotifyUser.id).where(ids, is_due).with_for_update(skip_locked=True)))
    if found:
        postponed = sa.update(SpotifyUser).where(SpotifyUser.id.in_(found))
        db.execute(postponed.values(profile_due_at=now + _RETRY_AFTER))
    return found


def _store(db: Session, spotify_user_id: int, grant_id: str | None, profile: Profile | None) -> bool:
    """Store the profile of a connection. Returns whether it was deleted instead, because it is another's."""
    locked = sa.select(SpotifyUser).where(SpotifyUser.id == spotify_user_id).with_for_update(of=SpotifyUser)
    row = db.scalar(locked)
    if row is None or row.profile_due_at is None or (profile is not None and row.token.grant_id != grant_id):
        return False  # it was deleted, or there is a new consent
    announce(db, users=[row.user_id] if row.user_id is not None else [], connections=[row.id])
    row.profile_due_at = None
    if profile is None:
        is_wrong = row.is_unidentified
    else:
        known = known_account(db, profile)
        is_wrong = known is not row and (known is not None or not row.is_unidentified)
    if is_wrong:
        db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id == row.id))
        return True
    if profile is not None:
        update_profile(row, profile)
    return False
