"""People with an account."""

import secrets
import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import NotSignedIn
from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base
from app.models import normalization

# A hash that no password matches. Verifying one against it takes as long as against a user's.
UNUSABLE_HASH = (
    "$argon2id$v=19$m=47104,t=1,p=1$kX2dGm0b1Yq3nq3o0H1l3g$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)


def has_email(address: str) -> bool:
    """Return whether a value of `users.email` is an address, and not the placeholder for none."""
    return "@" in address


def new_session_epoch() -> int:
    """Return a random number that fits a signed 64-bit column."""
    return secrets.randbits(64) - 2**63


class User(Base):
    """A person with an account. `username`, `email`, and `pending_email` are in their normal form.

    An account that was created by signing in with Spotify has no password (`UNUSABLE_HASH`) and no address
    at first. The previous release does not expect null in `email`, so it then has a unique text without `@`.
    """

    __tablename__ = "users"
    # Ids are never reused, so an old session cannot belong to a new account.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(ExactString(64), unique=True)
    email: Mapped[str] = mapped_column(ExactString(254), unique=True)
    # As it was entered, for sending. Null if an earlier release created the account.
    email_address: Mapped[str | None] = mapped_column(ExactString(254))
    email_verified_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # A new address, which replaces the verified one when it is verified. Until then it is not reserved, and
    # cannot be used to sign in or to reset the password.
    pending_email: Mapped[str | None] = mapped_column(ExactString(254))
    pending_email_address: Mapped[str | None] = mapped_column(ExactString(254))
    password_hash: Mapped[str] = mapped_column(code_string(255))
    # Sessions are valid only if they contain this number, so a new number ends all of them, including one
    # that is being stored. It is random because ids are reused after a backup is restored: a session from
    # before must not be valid for another person's account.
    session_epoch: Mapped[int] = mapped_column(
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"), default=new_session_epoch, server_default="0"
    )
    # Set by an operator. No one can sign in to the account.
    disabled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @hybrid_property
    def has_password(self) -> bool:
        """Whether the account has a password."""
        return self.password_hash != UNUSABLE_HASH

    @property
    def email_verified(self) -> bool:
        """Whether the owner has confirmed the address."""
        return self.email_verified_at is not None

    @property
    def disabled(self) -> bool:
        """Whether an operator has disabled the account."""
        return self.disabled_at is not None

    @property
    def mail_to(self) -> str:
        """The address that email is sent to.

        An earlier release, running next to this one, may have changed `email` without `email_address`.
        """
        entered = self.email_address
        if entered is not None and self.email in normalization.spellings(entered):
            return entered
        return normalization.sending_form(self.email)

    @property
    def email_to_verify(self) -> str | None:
        """The address that its owner has not confirmed yet, in the form that email is sent to."""
        if self.pending_email is not None:
            return self.pending_email_address
        if not has_email(self.email):
            return None
        return None if self.email_verified else self.mail_to

    def end_sessions(self) -> None:
        """Invalidate all current sessions."""
        self.session_epoch = new_session_epoch()

    def set_email(self, entered: str, *, verified_at: datetime | None) -> None:
        """Replace the address, and remove the pending one."""
        self.email, self.email_address = normalization.address_form(entered), entered
        self.email_verified_at = verified_at
        self.set_pending_email(None)

    def set_no_email(self) -> None:
        """Give a new account no address."""
        self.email = f"none:{uuid.uuid4().hex}"

    def set_pending_email(self, entered: str | None) -> None:
        """Set the address that will replace the current one, or remove it."""
        self.pending_email_address = entered
        self.pending_email = normalization.address_form(entered) if entered is not None else None


def lock_user(db: Session, user_id: int, session_epoch: int) -> User:
    """Lock an account whose owner signed in at this `session_epoch`, before adding something that is theirs.

    Call this before reading what they have: while this transaction waits for the lock, another one may add
    or revoke some of it, which an earlier read would have missed.

    Raises:
        NotSignedIn: The account is gone or disabled, or its sessions have ended.
    """
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    # Under the lock: a password reset may have ended all sessions, and deleted what they had added.
    if user is None or user.disabled or user.session_epoch != session_epoch:
        raise NotSignedIn
    # Nodes of a Galera cluster do not see each other's locks, only conflicting changes.
    db.execute(sa.update(User).where(User.id == user_id).values(updated_at=utc_now()))
    return user
