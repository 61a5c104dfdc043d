"""Reads that many ask for at once, or again a moment later, cost Spotify one call.

What is shared is one link's, under one key in Redis, so all processes share it and one command erases it:

    shared:{link}    hash; for each read, by a hash of its path and query:
        leader:…, lease:…     who is asking Spotify now, and until when that is believed
        answer:…              the last answer
        at:…, until:…, next:… when it came, until when it is served, from when on the next may be fetched

Whoever finds no answer asks Spotify (leads). The others wait for any answer to come after they have
begun to: it is of a call that was under way then, or newer. An answer that is still good is served while
the next one is on its way: a page that is asked for steadily never waits. A write of the link drops the
key, and with it the right of those who ask now to put their answer there: it may be of before the write.
All times are Redis' own, in milliseconds.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import redis

from app.bulkhead import Bulkhead, NoPlace
from app.outbound import Answer
from app.problems import SpotifyUnavailable

log = logging.getLogger(__name__)

# How long a leader is believed to be at work without a word. It says one every second.
LEASE_SECONDS, BEAT_SECONDS = 3.0, 1.0
# How long to wait for a leader; a little more than its own deadline.
WAIT_SECONDS = 16.0
# An answer is kept for those who wait for it, however short its life.
LINGER_SECONDS = 5.0
# After a disconnect nothing is kept for as long as a call may have been under way.
ERASED_SECONDS = 60
# Larger answers are fetched by each for itself; and so many reads of a link are kept, with their parts.
MOST_BYTES, MOST_FIELDS = 2 * 1024 * 1024, 6 * 64

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local read = ARGV[1]
"""

# Arguments: the read, my name, since when I have waited (or ''), the lease. Answers `hit` with answer and
# age, `lead` with the time and an answer that is still good (or not), or `wait` with the time.
_JOIN = (
    _NOW
    + """
local found = redis.call('HMGET', KEYS[1], 'answer:' .. read, 'until:' .. read, 'next:' .. read,
                         'at:' .. read, 'lease:' .. read, 'erased')
if found[6] then return {'lead', now} end
local awaited = found[1] and ARGV[3] ~= '' and tonumber(found[4]) >= tonumber(ARGV[3])
local good = found[1] and (awaited or tonumber(found[2]) > now)
local led = found[5] and tonumber(found[5]) > now
if good and (awaited or led or tonumber(found[3]) > now) then
  return {'hit', found[1], now - found[4]}
end
if led then return {'wait', now} end
redis.call('HSET', KEYS[1], 'leader:' .. read, ARGV[2], 'lease:' .. read, now + ARGV[4])
if redis.call('PTTL', KEYS[1]) < 2 * ARGV[4] then redis.call('PEXPIRE', KEYS[1], 2 * ARGV[4]) end
if good then return {'lead', now, found[1], now - found[4]} end
return {'lead', now}
"""
)

# Arguments: the read, my name, the answer, how long it is served, when it was asked for, how long it is kept,
# the most fields, how long others linger. Those that nobody may have any more go: a page that polls keeps
# the key for hours.
_LAND = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'leader:' .. read) ~= ARGV[2] then return 0 end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'until:' and redis.call('HGET', KEYS[1], field) + ARGV[8] < now then
    local old = string.sub(field, 7)
    redis.call('HDEL', KEYS[1], 'answer:' .. old, 'at:' .. old, 'until:' .. old, 'next:' .. old)
  end
end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[7]) then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'answer:' .. read, ARGV[3], 'at:' .. read, now,
           'until:' .. read, now + ARGV[4], 'next:' .. read, ARGV[5] + ARGV[4])
redis.call('HDEL', KEYS[1], 'leader:' .. read, 'lease:' .. read)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[6]) then redis.call('PEXPIRE', KEYS[1], ARGV[6]) end
return 1
"""
)

_RELEASE = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'leader:' .. read) == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'leader:' .. read, 'lease:' .. read)
end
"""
)

_STAY = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'leader:' .. read) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'lease:' .. read, now + ARGV[3])
if redis.call('PTTL', KEYS[1]) < 2 * ARGV[3] then redis.call('PEXPIRE', KEYS[1], 2 * ARGV[3]) end
return 1
"""
)


class _Landed(msgspec.Struct):
    """How a read ended, for those who share it: an answer, or none (`status` 0)."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""


@dataclass(frozen=True)
class Served:
    """An answer, how it was come by, and its age in seconds."""

    answer: Answer
    cache: Literal["hit", "shared", "miss"]
    age: int = 0


@dataclass(frozen=True)
class _Read:
    """One read of one link, by whoever asks now."""

    key: str
    name: str
    me: str


class SharedAnswers:
    def __init__(self, client: redis.Redis, bulkhead: Bulkhead) -> None:
        self._client = client
        self._bulkhead = bulkhead
        self._leases = _Leases(self._stay)

    def get(
        self, link_id: int, target: str, fetch: Callable[[], Answer], life: Callable[[Answer], float]
    ) -> Served:
        """What this link reads at `target`: shared, or fetched. `life`: the seconds an answer is good.

        Raises:
            NoPlace: too many wait for Spotify already.
            SpotifyUnavailable: the one who asked got no answer, or did not come back.
            Whatever `fetch` raises, for its caller.
        """
        name = hashlib.sha256(target.encode()).hexdigest()[:32]
        read, since = _Read(_key(link_id), name, secrets.token_hex(8)), ""
        until, pause = time.monotonic() + WAIT_SECONDS, 0.01
        with ExitStack() as stack:
            has_place = False
            while True:
                found, *rest = self._join(read, since)
                if found == b"hit":
                    return _served(rest[0], rest[1], "shared" if since else "hit")
                leads, good = found == b"lead", rest[1:]
                if not has_place:
                    try:
                        stack.enter_context(self._bulkhead.place(patient=not good))
                    except NoPlace:
                        if leads:
                            self._release(read)
                        if good:
                            return _served(good[0], good[1], "hit")
                        raise
                    has_place = True
                if leads:
                    return Served(self._lead(read, rest[0], fetch, life), "miss")
                since = since or str(rest[0])
                if time.monotonic() > until:
                    raise SpotifyUnavailable(retry_after=1)
                time.sleep(pause)
                pause = min(pause * 1.5, 0.05)

    def drop(self, link_id: int) -> None:
        """Forget what the link has read: it has written something."""
        self._quietly(lambda: self._client.unlink(_key(link_id)))

    def erase(self, link_id: int) -> None:
        """Forget it for good: the link is gone, and what is under way must not be kept any more."""

        def work() -> None:
            with self._client.pipeline(transaction=True) as batch:
                batch.unlink(_key(link_id))
                batch.hset(_key(link_id), "erased", "1")
                batch.expire(_key(link_id), ERASED_SECONDS)
                batch.execute()

        self._quietly(work)

    def _lead(
        self, read: _Read, asked: int, fetch: Callable[[], Answer], life: Callable[[Answer], float]
    ) -> Answer:
        """Ask Spotify for everybody. A failure is everybody's too."""
        with self._leases.hold(read):
            try:
                answer = fetch()
            except SpotifyUnavailable:
                self._land(read, _Landed(0), asked, 0)
                raise
            except BaseException:
                self._release(read)  # it is about the caller: the next one finds out for itself
                raise
        if len(answer.body) > MOST_BYTES:
            self._release(read)
        else:
            self._land(read, _Landed(answer.status, answer.headers, answer.body), asked, life(answer))
        return answer

    def _join(self, read: _Read, since: str) -> list[Any]:
        found: Any = self._client.eval(
            _JOIN, 1, read.key, read.name, read.me, since, str(int(LEASE_SECONDS * 1000))
        )
        return list(found)

    def _land(self, read: _Read, landed: _Landed, asked: int, life: float) -> None:
        kept = max(life, LINGER_SECONDS)
        linger = str(int(LINGER_SECONDS * 1000))
        values = [str(int(life * 1000)), str(asked), str(int(kept * 1000)), str(MOST_FIELDS), linger]
        encoded = msgspec.msgpack.encode(landed)
        self._quietly(lambda: self._client.eval(_LAND, 1, read.key, read.name, read.me, encoded, *values))

    def _release(self, read: _Read) -> None:
        self._quietly(lambda: self._client.eval(_RELEASE, 1, read.key, read.name, read.me))

    def _stay(self, read: _Read) -> None:
        lease = str(int(LEASE_SECONDS * 1000))
        self._quietly(lambda: self._client.eval(_STAY, 1, read.key, read.name, read.me, lease))

    def _quietly(self, work: Callable[[], object]) -> None:
        """The caller has its answer from Spotify: what Redis has to say now must not take it away."""
        try:
            work()
        except redis.RedisError as error:
            log.warning("sharing_failed", extra={"reason": type(error).__name__})


class _Leases:
    """Keeps the leases of all reads that this process leads, in one thread, which ends with the last."""

    def __init__(self, stay: Callable[[_Read], None]) -> None:
        self._stay = stay
        self._changed = threading.Condition()
        self._held: set[_Read] = set()
        self._running = False

    @contextmanager
    def hold(self, read: _Read) -> Iterator[None]:
        with self._changed:
            self._held.add(read)
            if not self._running:
                self._running = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(read)
                self._changed.notify_all()

    def _beat(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, timeout=BEAT_SECONDS)
                if not self._held:
                    self._running = False
                    return
                reads = list(self._held)
            with suppress(Exception):
                for read in reads:
                    self._stay(read)


def _key(link_id: int) -> str:
    return f"shared:{link_id}"


def _served(encoded: bytes, age_ms: int, cache: Literal["hit", "shared"]) -> Served:
    try:
        landed = msgspec.msgpack.decode(encoded, type=_Landed)
    except msgspec.MsgspecError:  # planted, or of another release
        raise SpotifyUnavailable from None
    if landed.status == 0:
        raise SpotifyUnavailable
    return Served(Answer(landed.status, landed.headers, landed.body), cache, max(0, age_ms) // 1000)
