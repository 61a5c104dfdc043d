"""What a person gets who asks for all that is held about them (GDPR, articles 15 and 20)."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.infra.clock import utc_now
from app.infra.database import reading
from app.models import OneTimeToken, Purpose, SpotifyUser, TokenRefresh, User
from app.spotify.schemas import describe
from app.web import sessions


def everything_about(user: User) -> dict[str, Any]:
    """All personal data held, for `ExportOut`. No tokens, no password hash."""
    with reading() as db:
        previous_emails = db.execute(_previous_emails(user)).all()
        link = db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user.id))
        refreshes = (
            list(
                db.scalars(
                    sa.select(TokenRefresh)
                    .where(TokenRefresh.spotify_user_id == link.id)
                    .order_by(TokenRefresh.id)
                )
            )
            if link is not None
            else []
        )
    return {
        "exported_at": utc_now(),
        "user": _columns(user) | {"previous_emails": previous_emails},
        "sessions": sessions.of_user(user.id, link.token.grant_id if link is not None else None),
        "spotify": None if link is None else describe(link) | _more(link),
        "spotify_refreshes": refreshes,
    }


def _previous_emails(user: User) -> sa.Select[str, str | None, datetime]:
    """Addresses that can be restored, each with the time until when."""
    email, entered = OneTimeToken.email, OneTimeToken.email_address
    until = sa.func.max(OneTimeToken.expires_at).label("expires_at")
    undoable = OneTimeToken.user_id == user.id, OneTimeToken.purpose == Purpose.EMAIL_CHANGE
    return sa.select(email, entered, until).where(*undoable).group_by(email, entered).order_by(until)


def _columns(user: User) -> dict[str, Any]:
    names = [*(column.key for column in sa.inspect(User).column_attrs), "email_verified"]
    return {name: getattr(user, name) for name in names}


def _more(link: SpotifyUser) -> dict[str, Any]:
    return {
        "product": link.product,
        "country": link.country,
        "connected_at": link.created_at,
        "updated_at": link.updated_at,
        "last_used_at": link.last_used_at,
    }
