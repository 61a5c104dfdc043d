"""The breaker that pauses all refreshes while they fail for everyone."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from app.infra.column_types import UTCDateTime, code_string
from app.infra.database import Base


class Breaker(Base):
    """One reason to pause refreshing, and whether it applies now. See `app.spotify.tokens.breaker`."""

    __tablename__ = "breakers"

    name: Mapped[str] = mapped_column(code_string(32), primary_key=True)
    opened_at: Mapped[datetime] = mapped_column(UTCDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)  # NULL while it is open
    probe_at: Mapped[datetime] = mapped_column(UTCDateTime)  # when the next probe may start
    successes: Mapped[int] = mapped_column(default=0)  # of probes, in a row
