"""Many grants that are due when a fault begins."""

import time
from collections import deque
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra.encryption import TokenCipher
from app.models import AccessToken
from tests.helpers.factories import store_connections
from tests.helpers.sandbox_client import SandboxClient

REFRESH_SECONDS = 1800


class DueGrants:
    """The grants of new people, all of them due now."""

    def __init__(self, engine: sa.Engine, cipher: TokenCipher, sandbox: SandboxClient, count: int) -> None:
        with Session(engine) as session, session.begin():
            self._ids = store_connections(session, cipher, sandbox.seed(count))
        self._due_at = datetime.now(UTC)

    def wait(self, engine: sa.Engine) -> tuple[float, float]:
        """Wait until all are refreshed.

        Returns the seconds from when they were due to the last refresh, and the longest time without one.
        """
        deadline = time.monotonic() + REFRESH_SECONDS
        moments: list[datetime] = []
        query = sa.select(AccessToken.refreshed_at).where(
            AccessToken.spotify_user_id.between(self._ids[0], self._ids[-1]), AccessToken.generation == 1
        )
        while len(moments) < len(self._ids):
            missing = len(self._ids) - len(moments)
            assert time.monotonic() < deadline, f"{missing} grants were not refreshed"
            time.sleep(1)
            with Session(engine) as session:
                moments = sorted(filter(None, session.scalars(query)))
        pause = max((later - earlier for earlier, later in pairwise([self._due_at, *moments])))
        return (moments[-1] - self._due_at).total_seconds(), pause.total_seconds()


def most_refreshes(journal: list[dict[str, Any]], seconds: int) -> int:
    """Return how many refreshes Spotify received in the busiest period of this length."""
    arrivals = sorted(
        datetime.fromisoformat(call["at"]) for call in journal if call["grant_type"] == "refresh_token"
    )
    period: deque[datetime] = deque()
    most = 0
    for arrival in arrivals:
        period.append(arrival)
        while (arrival - period[0]).total_seconds() >= seconds:
            period.popleft()
        most = max(most, len(period))
    return most
