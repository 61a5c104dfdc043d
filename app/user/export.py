"""Collects the personal data that a user can request (GDPR, articles 15 and 20)."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth.personal_access_tokens import list_tokens
from app.infra.database import reading
from app.models import OneTimeToken, PersonalAccessToken, Purpose, SpotifyApp, SpotifyUser, TokenRefresh, User
from app.spotify.applications.lookup import row_of_user
from app.web import sessions
from app.web.sessions.index import ListedSession


@dataclass(frozen=True)
class PreviousEmail:
    """An address that the user can restore until `expires_at`."""

    email: str
    email_address: str | None  # as it was entered
    expires_at: datetime


@dataclass(frozen=True)
class PersonalData:
    """All personal data that is stored about a user."""

    user: User
    previous_emails: list[PreviousEmail]
    sessions: list[ListedSession]
    tokens: list[PersonalAccessToken]
    spotify_app: SpotifyApp | None
    spotify_user: SpotifyUser | None
    refreshes: list[TokenRefresh]


def collect_personal_data(user: User) -> PersonalData:
    """Collect everything about a user."""
    with reading() as db:
        previous_emails = _previous_emails(db, user)
        spotify_user = db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user.id))
        refreshes = _refreshes(db, spotify_user) if spotify_user is not None else []
    grant_id = spotify_user.token.grant_id if spotify_user is not None else None
    listed = sessions.of_user(user.id, grant_id)
    tokens = list_tokens(user.id, user.session_epoch)
    app = row_of_user(user.id)
    return PersonalData(user, previous_emails, listed, tokens, app, spotify_user, refreshes)


def _previous_emails(db: Session, user: User) -> list[PreviousEmail]:
    email, entered = OneTimeToken.email, OneTimeToken.email_address
    expires_at = sa.func.max(OneTimeToken.expires_at).label("expires_at")
    can_restore = OneTimeToken.user_id == user.id, OneTimeToken.purpose == Purpose.EMAIL_CHANGE
    found = sa.select(email, entered, expires_at).where(*can_restore).group_by(email, entered)
    return [PreviousEmail(*row) for row in db.execute(found.order_by(expires_at))]


def _refreshes(db: Session, spotify_user: SpotifyUser) -> list[TokenRefresh]:
    found = sa.select(TokenRefresh).where(TokenRefresh.spotify_user_id == spotify_user.id)
    return list(db.scalars(found.order_by(TokenRefresh.id)))
