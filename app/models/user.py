from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from app.clock import utc_now
from app.database import Base, UTCDateTime, exact_string


class User(Base):
    """A person with an account here. Name and address are stored in their one normal form."""

    __tablename__ = "users"
    # Ids are never given out twice, so an old session cannot come to mean a new account.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(exact_string(64), unique=True)
    email: Mapped[str] = mapped_column(exact_string(254), unique=True)
    email_verified_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    password_hash: Mapped[str] = mapped_column(exact_string(255))
    # A session counts only while it names this number: a new password ends all that came before it,
    # also one that is being stored at that moment.
    session_epoch: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @property
    def email_verified(self) -> bool:
        return self.email_verified_at is not None
