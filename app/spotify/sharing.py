"""Reads that many ask for at once, or again a moment later, cost Spotify one call.

What is shared is one link's, under one key in Redis, so all processes share it and one command erases it:

    shared:{link}    hash; for each read, by a hash of its path and query:
        leader:…, lease:…     who is asking Spotify now, and until when that is believed
        waited:…              somebody waits for that
        answer:…              the last answer
        at:…, until:…, next:… when it came, until when it is served, from when on the next may be fetched

Whoever finds no answer asks Spotify (leads). The others wait for any answer to come after they have begun to:
it is of a call that was under way then, or newer. An answer that is still good is served while the next one
is on its way: a page that is asked for steadily never waits. What nobody may have any more, or nobody waits
for, is not kept. A write of the link drops the key, before it is sent and when it has ended, and with it the
right of those who ask now to put their answer there: it may be of before the write. So does the link's end,
once it is committed: who asks later finds no token. All times are Redis' own, in milliseconds.
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
# With less time left than this, nobody begins to ask Spotify.
LEAST_SECONDS = 2.0
# An answer is kept for those who wait for it, however short its life.
LINGER_SECONDS = 5.0
# Larger answers are fetched by each for itself. Of one link's, so many bytes are kept at the most.
MOST_BYTES, MOST_BYTES_OF_ONE = 512 * 1024, 4 * 1024 * 1024

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local read = ARGV[1]
local function keep_for(ms)
  if redis.call('PTTL', KEYS[1]) < tonumber(ms) then redis.call('PEXPIRE', KEYS[1], ms) end
end
"""

# Arguments: the read, my name, since when I have waited (or ''), the lease. Answers `hit` with answer and
# age, `lead` with the time and an answer that is still good (or not), or `wait` with the time.
_JOIN = (
    _NOW
    + """
local since, lease = ARGV[3], ARGV[4]
local found = redis.call('HMGET', KEYS[1], 'answer:' .. read, 'at:' .. read, 'until:' .. read,
                         'next:' .. read, 'lease:' .. read)
local answer, at, good_until, next_from = found[1], found[2], found[3], found[4]
local led = found[5] and tonumber(found[5]) > now
local awaited = answer and since ~= '' and tonumber(at) >= tonumber(since)
local good = answer and (awaited or tonumber(good_until) > now)
if good and (awaited or led or tonumber(next_from) > now) then return {'hit', answer, now - at} end
if led then
  redis.call('HSET', KEYS[1], 'waited:' .. read, '1')
  return {'wait', now}
end
redis.call('HSET', KEYS[1], 'leader:' .. read, ARGV[2], 'lease:' .. read, now + lease)
keep_for(2 * lease)
if good then return {'lead', now, answer, now - at} end
return {'lead', now}
"""
)

# Arguments: the read, my name, the answer, its life, when it was asked for, how long others linger, how much
# may be kept. What nobody may have any more goes: a page that polls keeps the key for hours.
_LAND = (
    _NOW
    + """
local answer, life, asked, linger, most = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
if redis.call('HGET', KEYS[1], 'leader:' .. read) ~= ARGV[2] then return 0 end
local waited = redis.call('HDEL', KEYS[1], 'waited:' .. read)
redis.call('HDEL', KEYS[1], 'leader:' .. read, 'lease:' .. read)
local size = string.len(answer)
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'until:' then
    local other = string.sub(field, 7)
    if redis.call('HGET', KEYS[1], field) + linger < now then
      redis.call('HDEL', KEYS[1], 'answer:' .. other, 'at:' .. other, 'until:' .. other, 'next:' .. other)
    elseif other ~= read then
      size = size + redis.call('HSTRLEN', KEYS[1], 'answer:' .. other)
    end
  end
end
if size > most or (life == 0 and waited == 0) then return 0 end
redis.call('HSET', KEYS[1], 'answer:' .. read, answer, 'at:' .. read, now,
           'until:' .. read, now + life, 'next:' .. read, asked + life)
keep_for(math.max(life, linger))
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
keep_for(2 * ARGV[3])
return 1
"""
)

# How a read may have ended without an answer to share.
_FAILED, _TOO_LARGE = 0, -1


class _Landed(msgspec.Struct):
    """How a read ended, for those who share it: with an answer, or as `status` says without one."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    retry_after: int | None = None  # seconds, of a failure


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
        self,
        link_id: int,
        target: str,
        fetch: Callable[[], Answer],
        life: Callable[[Answer], float],
        *,
        deadline: float,
    ) -> Served:
        """What this link reads at `target`: shared, or fetched. `life`: the seconds an answer is good.

        `deadline` is when the caller wants to be told (`time.monotonic`), and `fetch` keeps it.

        Raises:
            NoPlace: too many wait for Spotify already.
            SpotifyUnavailable: the one who asked got no answer, or not in time.
            Whatever `fetch` raises, for its caller.
        """
        name = hashlib.sha256(target.encode()).hexdigest()[:32]
        read, since, pause = _Read(_key(link_id), name, secrets.token_hex(8)), "", 0.01
        with ExitStack() as stack:
            has_place = False
            while True:
                found, *rest = self._join(read, since)
                if found == b"hit":
                    landed, age = _decoded(rest[0]), max(0, rest[1]) // 1000
                    if landed.status == _TOO_LARGE:
                        return Served(fetch(), "miss")
                    return Served(_answer(landed), "shared" if since else "hit", age)
                asked, *good = rest
                since = since or str(asked)
                in_time = time.monotonic() < deadline - LEAST_SECONDS
                if found == b"lead":
                    has_place = has_place or (in_time and self._takes_place(stack, link_id))
                    if has_place and in_time:
                        return Served(self._lead(read, asked, fetch, life), "miss")
                    # Others may: all places may be held by those who would wait for this one.
                    self._release(read)
                    if good:
                        return Served(_answer(_decoded(good[0])), "hit", max(0, good[1]) // 1000)
                if not in_time:
                    raise SpotifyUnavailable(retry_after=1)
                if has_place:
                    time.sleep(pause)
                    pause = min(pause * 1.5, 0.05)
                else:
                    stack.enter_context(self._bulkhead.place(link_id, joins=found == b"wait"))
                    has_place = True

    def _takes_place(self, stack: ExitStack, link_id: int) -> bool:
        """Whether there is a place at once."""
        try:
            stack.enter_context(self._bulkhead.place(link_id, patient=False))
        except NoPlace:
            return False
        return True

    def drop(self, link_id: int) -> None:
        """Forget what the link has read: it has written something, has consented anew, or is gone."""
        self._quietly(lambda: self._client.unlink(_key(link_id)))

    def _lead(
        self, read: _Read, asked: int, fetch: Callable[[], Answer], life: Callable[[Answer], float]
    ) -> Answer:
        """Ask Spotify for everybody. A failure is everybody's too."""
        with self._leases.hold(read):
            try:
                answer = fetch()
            except SpotifyUnavailable as failure:
                self._land(read, _Landed(_FAILED, retry_after=failure.retry_after), asked, 0)
                raise
            except BaseException:
                self._release(read)  # it is about the caller: the next one finds out for itself
                raise
        if len(answer.body) > MOST_BYTES:
            self._land(read, _Landed(_TOO_LARGE), asked, 0)
        else:
            self._land(read, _Landed(answer.status, answer.headers, answer.body), asked, life(answer))
        return answer

    def _join(self, read: _Read, since: str) -> list[Any]:
        found: Any = self._client.eval(
            _JOIN, 1, read.key, read.name, read.me, since, str(int(LEASE_SECONDS * 1000))
        )
        return list(found)

    def _land(self, read: _Read, landed: _Landed, asked: int, life: float) -> None:
        encoded = msgspec.msgpack.encode(landed)
        values = [int(life * 1000), asked, int(LINGER_SECONDS * 1000), MOST_BYTES_OF_ONE]
        self._quietly(
            lambda: self._client.eval(_LAND, 1, read.key, read.name, read.me, encoded, *map(str, values))
        )

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


def _decoded(encoded: bytes) -> _Landed:
    try:
        return msgspec.msgpack.decode(encoded, type=_Landed)
    except msgspec.MsgspecError:  # planted, or of another release
        return _Landed(_FAILED)


def _answer(landed: _Landed) -> Answer:
    if landed.status == _FAILED:
        raise SpotifyUnavailable(retry_after=landed.retry_after)
    return Answer(landed.status, landed.headers, landed.body)
