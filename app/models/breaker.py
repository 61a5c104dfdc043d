from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from app.infra.database import Base, UTCDateTime, code_string


class Breaker(Base):
    """Why refreshing is held back for everybody, if it is. See `app.spotify.tokens.breaker`."""

    __tablename__ = "breakers"

    name: Mapped[str] = mapped_column(code_string(32), primary_key=True)
    opened_at: Mapped[datetime] = mapped_column(UTCDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)  # empty while it is open
    probe_at: Mapped[datetime] = mapped_column(UTCDateTime)  # when the next single try may be made
    successes: Mapped[int] = mapped_column(default=0)  # of such tries, one after another
