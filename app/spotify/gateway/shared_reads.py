"""Reads that many callers ask for at once, or again a moment later, cost Spotify one call.

A caller that finds no response in the cache asks Spotify (leads). The others wait for any response to come
after they have begun to: it is of a call that was under way then, or newer. A response that is still good is
served while the next one is on its way, so a page that asks steadily never waits.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import redis

from app.errors import SpotifyUnavailable
from app.infra.http_client import HttpResponse
from app.resilience.bulkhead import Admission, Bulkhead, BulkheadFull
from app.spotify.clients.call import MIN_SECONDS
from app.spotify.gateway import cache
from app.spotify.gateway.cache import FAILED, MAX_BYTES, TOO_LARGE, CachedResponse, Found, Read, ResponseCache


@dataclass(frozen=True)
class SharedResponse:
    """An answer, how it was come by, and its age in seconds."""

    answer: HttpResponse
    cache: Literal["hit", "shared", "miss"]
    age: int = 0


@dataclass(frozen=True)
class Fetch:
    """How to make a call to Spotify, how many seconds its answer lives, and the deadline (monotonic)."""

    make: Callable[[], HttpResponse]
    life: Callable[[HttpResponse], float]
    deadline: float

    @property
    def latest_start(self) -> float:
        return self.deadline - MIN_SECONDS


class SharedReads:
    def __init__(self, client: redis.Redis, bulkhead: Bulkhead) -> None:
        self._cache = ResponseCache(client)
        self._bulkhead = bulkhead
        self._leases = _Leases(self._cache.renew)

    def get(self, link_id: int, key: str, fetch: Fetch) -> SharedResponse:
        """What this link reads as `key`: shared, or fetched.

        Raises:
            NoPlace: too many callers wait for Spotify already.
            SpotifyUnavailable: whoever asked Spotify got no answer, or not in time.
            Whatever `fetch.make` raises, for its caller.
        """
        read = Read.of(link_id, key)
        found = self._cache.join(read)
        if found.kind == "hit" and found.response is not None:
            return SharedResponse(_answer(found.response), "hit", found.age)
        try:
            with self._bulkhead.admit(link_id) as admission:
                return self._lead_or_wait(read, found, admission, fetch)
        except BulkheadFull:
            self._cache.release(read)
            if found.response is None:
                raise
            return SharedResponse(_answer(found.response), "hit", found.age)

    def drop(self, link_id: int) -> None:
        """Forget what the link has read: it has written something, has consented again, or is gone."""
        self._cache.drop(link_id)

    def _lead_or_wait(self, read: Read, found: Found, admission: Admission, fetch: Fetch) -> SharedResponse:
        since, pause, began = found.now, 0.01, time.monotonic()
        while True:
            if found.kind == "lead":
                if self._may_lead(admission, fetch):
                    return SharedResponse(self._fetch_as_leader(read, found.now, fetch), "miss")
                # Others may lead: all places may be held by callers that wait for this very read.
                self._cache.release(read)
                if found.response is not None:
                    return SharedResponse(_answer(found.response), "hit", found.age)
                self._bulkhead.acquire(admission, until=fetch.latest_start)
            else:
                if time.monotonic() >= fetch.latest_start:
                    raise SpotifyUnavailable(retry_after=1)
                self._bulkhead.pause(admission, pause)
                pause = min(pause * 1.5, _longest_pause(time.monotonic() - began))
            found = self._cache.join(read, since)
            if found.kind == "hit" and found.response is not None:
                return self._shared(found.response, found.age, admission, fetch)

    def _may_lead(self, admission: Admission, fetch: Fetch) -> bool:
        """Whether there is time left, and a place at once."""
        if time.monotonic() >= fetch.latest_start:
            return False
        try:
            self._bulkhead.acquire(admission)
        except BulkheadFull:
            return False
        return True

    def _shared(
        self, response: CachedResponse, age: int, admission: Admission, fetch: Fetch
    ) -> SharedResponse:
        """What another caller has fetched. What was too large to be stored is fetched by each for itself."""
        if response.status != TOO_LARGE:
            return SharedResponse(_answer(response), "shared", age)
        self._bulkhead.acquire(admission, until=fetch.latest_start)
        return SharedResponse(fetch.make(), "miss")

    def _fetch_as_leader(self, read: Read, asked: int, fetch: Fetch) -> HttpResponse:
        """Ask Spotify for everybody. A failure is everybody's too."""
        with self._leases.hold(read):
            try:
                answer = fetch.make()
            except SpotifyUnavailable as failure:
                failed = CachedResponse(FAILED, retry_after=failure.retry_after)
                self._cache.store(read, failed, asked=asked, life=0)
                raise
            except BaseException:
                self._cache.release(read)  # it is about the caller: the next one finds out for itself
                raise
        if len(answer.body) > MAX_BYTES:
            self._cache.store(read, CachedResponse(TOO_LARGE), asked=asked, life=0)
        else:
            response = CachedResponse(answer.status, answer.headers, answer.body)
            self._cache.store(read, response, asked=asked, life=fetch.life(answer))
        return answer


class _Leases:
    """Renews the leases of all reads that this process leads, in one thread, which ends with the last."""

    def __init__(self, renew: Callable[[Read], None]) -> None:
        self._renew = renew
        self._changed = threading.Condition()
        self._held: set[Read] = set()
        self._running = False

    @contextmanager
    def hold(self, read: Read) -> Iterator[None]:
        with self._changed:
            self._held.add(read)
            if not self._running:
                threading.Thread(target=self._beat, name="leases", daemon=True).start()
                self._running = True
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(read)
                self._changed.notify_all()

    def _beat(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, timeout=cache.BEAT_SECONDS)
                if not self._held:
                    self._running = False
                    return
                reads = list(self._held)
            with suppress(Exception):
                for read in reads:
                    self._renew(read)


def _longest_pause(waited: float) -> float:
    """Return after how many seconds a waiting caller should look again.

    Many may wait for a slow Spotify, and looking costs CPU time.
    """
    return min(max(0.05, waited / 20), 0.3)


def _answer(response: CachedResponse) -> HttpResponse:
    if response.status == FAILED:
        raise SpotifyUnavailable(retry_after=response.retry_after)
    return HttpResponse(response.status, response.headers, response.body)
