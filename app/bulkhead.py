"""A bulkhead: who waits for a slow Spotify may hold some of a worker's threads, and never all of them."""

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from app.problems import SpotifyUnavailable

# What takes longer is slow. While nothing is, one may wait so long for a place, and hold a thread.
SLOW_SECONDS = 0.3
# For so long a Spotify that was slow counts as slow, also if one who came late was served quickly.
REMEMBERED_SECONDS = 5.0


class NoPlace(SpotifyUnavailable):
    """All places are taken, or this caller has its share of them."""

    detail = "Too many calls wait for Spotify already."
    retry_after = 1


class Bulkhead:
    """So many places, of which one caller may have half. Who finds none is turned away: at once while
    Spotify is slow, and after a moment while it is quick and places are given back soon.

    Who waits for a place holds a thread as well. So they are fewer than the places, or one person's many
    calls, each a little quicker than slow, would hold all threads and keep everybody else out. Those who
    join a call are served together, and soon: they may be many."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._each = max(1, places // 2)
        self._waiting = threading.Semaphore(places * 3 // 4)
        self._changed = threading.Condition()
        self._since: dict[object, float] = {}
        self._taken: Counter[Hashable] = Counter()
        self._slow_until = 0.0

    @contextmanager
    def place(self, who: Hashable, *, patient: bool = True, joins: bool = False) -> Iterator[None]:
        """Hold a place while the block runs. Who `joins` waits for what somebody with a place will bring.

        Raises:
            NoPlace
        """
        if not (self._take_free(who) or (patient and self._wait_for_one(who, joins=joins))):
            raise NoPlace
        held = object()
        with self._changed:
            self._since[held] = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._note_slowness()  # this one may have been
                del self._since[held]
                self._taken[who] -= 1
                self._taken += Counter()  # forgets who has none
                self._changed.notify_all()

    def _take_free(self, who: Hashable) -> bool:
        with self._changed:
            if self._taken.total() >= self._places or self._taken[who] >= self._each:
                return False
            self._taken[who] += 1
            return True

    def _wait_for_one(self, who: Hashable, *, joins: bool) -> bool:
        if joins:
            return self._wait(who)
        if not self._waiting.acquire(blocking=False):
            return False
        try:
            return self._wait(who)
        finally:
            self._waiting.release()

    def _wait(self, who: Hashable) -> bool:
        until = time.monotonic() + SLOW_SECONDS
        while time.monotonic() < until and not self._is_slow():
            if self._take_free(who):
                return True
            with self._changed:
                self._changed.wait(0.02)
        return False

    def _is_slow(self) -> bool:
        with self._changed:
            self._note_slowness()
            return time.monotonic() < self._slow_until

    def _note_slowness(self) -> None:
        now = time.monotonic()
        if now - min(self._since.values(), default=now) > SLOW_SECONDS:
            self._slow_until = now + REMEMBERED_SECONDS
