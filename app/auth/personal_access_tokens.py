"""Creates, lists, and revokes personal access tokens. `app.web.identity` verifies those in requests."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth.notifications import Notifications
from app.errors import TooManyTokens
from app.infra import database
from app.infra.bearer_token import hash_token, new_token
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import MailKind, PersonalAccessToken, Right
from app.models.personal_access_token import MAX_TOKEN_LIFETIME
from app.models.times import is_over
from app.models.user import lock_user

log = logging.getLogger(__name__)

MAX_TOKENS = 20
MAX_ID = 2**31 - 1
DEFAULT_LIFETIME = timedelta(days=90)


@dataclass(frozen=True)
class CreatedToken:
    """A new token. `token` is what requests present, and is stored nowhere."""

    row: PersonalAccessToken
    token: str


class PersonalAccessTokens:
    """The personal access tokens of accounts.

    Args:
        secret_key: The key of the stored hashes.
        notifications: Tells owners about new tokens.
    """

    def __init__(self, secret_key: str, notifications: Notifications) -> None:
        self._secret_key = secret_key
        self._notifications = notifications

    def create(
        self, user_id: int, session_epoch: int, *, name: str, rights: Iterable[Right], lifetime: timedelta
    ) -> CreatedToken:
        """Create a token, and email its owner.

        Args:
            user_id: The owner, who has confirmed the password or has just signed in.
            session_epoch: The owner's `session_epoch` when they did. A password change since then prevents
                the token.
            name: The owner's name for it.
            rights: What it may be used for.
            lifetime: At most `MAX_TOKEN_LIFETIME`.

        Raises:
            TooManyTokens: The account has 20 tokens.
            NotSignedIn: The account is gone or disabled, or its sessions have ended since.
        """
        token, granted = new_token(), " ".join(right for right in Right if right in {*rights})

        def work(db: Session) -> PersonalAccessToken:
            user = lock_user(db, user_id, session_epoch)
            now = database.db_now(db)
            db.execute(
                sa.delete(PersonalAccessToken).where(
                    PersonalAccessToken.user_id == user_id, sa.not_(_is_live(user.session_epoch, now))
                )
            )
            theirs = PersonalAccessToken.user_id == user_id
            if db.execute(sa.select(sa.func.count()).where(theirs)).scalar_one() >= MAX_TOKENS:
                raise TooManyTokens
            row = PersonalAccessToken(
                user_id=user_id,
                token_hash=hash_token(self._secret_key, token),
                name=name,
                rights=granted,
                session_epoch=session_epoch,
                created_at=now,
                expires_at=now + lifetime,
            )
            db.add(row)
            kind, expires_at = MailKind.PERSONAL_ACCESS_TOKEN_CREATED, row.expires_at.isoformat()
            self._notifications.notify(db, user, kind, rights=granted, expires_at=expires_at)
            db.flush()
            return row

        row = run_in_transaction(work)
        log.info("personal_access_token_created", extra={"token_id": row.id, "account": user_id})
        return CreatedToken(row, token)


def list_tokens(user_id: int, session_epoch: int) -> list[PersonalAccessToken]:
    """Return the live tokens of an account, newest first."""
    with reading() as db:
        is_live = _is_live(session_epoch, database.db_now(db))
        found = sa.select(PersonalAccessToken).where(PersonalAccessToken.user_id == user_id, is_live)
        return list(db.scalars(found.order_by(PersonalAccessToken.id.desc())))


def revoke(user_id: int, token_id: int) -> bool:
    """Revoke a token of an account. Returns whether it had one with this id."""
    if token_id > MAX_ID:
        return False  # the database would not accept it as a number

    def work(db: Session) -> bool:
        theirs = PersonalAccessToken.user_id == user_id, PersonalAccessToken.id == token_id
        announce(db, users=[user_id])
        deleted = db.execute(sa.delete(PersonalAccessToken).where(*theirs))
        return deleted.rowcount > 0  # type: ignore[attr-defined, no-any-return]

    revoked = run_in_transaction(work)
    if revoked:
        log.info("personal_access_token_revoked", extra={"token_id": token_id})
    return revoked


def revoke_all(db: Session, user_id: int, *, best_effort: bool = False) -> None:
    """Revoke all tokens of an account, in the caller's transaction. See `announce` for `best_effort`."""
    announce(db, users=[user_id], best_effort=best_effort)
    db.execute(sa.delete(PersonalAccessToken).where(PersonalAccessToken.user_id == user_id))


def _is_live(session_epoch: int, now: datetime) -> sa.ColumnElement[bool]:
    """In SQL: the token has neither expired nor ended with the sessions of its time."""
    has_expired = is_over(PersonalAccessToken.expires_at, now, MAX_TOKEN_LIFETIME)
    return sa.and_(PersonalAccessToken.session_epoch == session_epoch, sa.not_(has_expired))
