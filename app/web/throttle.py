"""Bounds on guessing and on flooding, counted in Redis for all processes together.

Guesses at a password are counted before they are looked at, so a hundred at once are no more than a
hundred one after another. Without Redis nothing is guessed at all: the caller gets 503.
"""

import hashlib
import hmac
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from flask import request

from app.errors import InvalidCredentials, TooManyAttempts
from app.services import services
from app.web.client_address import THIS_MACHINE, network, parse

log = logging.getLogger(__name__)

# At one account from one address: so many guesses, then a wait of a second, doubled by each failure.
FREE_ATTEMPTS = 10
LONGEST_WAIT_SECONDS = 900
FORGOTTEN_AFTER_SECONDS = 86_400
# Once so many guesses at an account have failed, from wherever, each address has a single one before it
# waits. Nobody is locked out by this: who comes from a fresh address and knows the password is let in.
ACCOUNT_FAILURE_LIMIT = 100
# From one address, at all accounts together.
ADDRESS_FAILURES = 100
HOUR_SECONDS = 3600

# A time that is further ahead than any we write is from before Redis' clock was set back. So are keys that
# would be kept for too long. Neither may keep people waiting.
_FORGET_IF_TOO_LONG = """
local function forget_if_too_long(key, most)
    if redis.call('PTTL', key) > most then redis.call('DEL', key) end
end
"""

# Counts a guess as a failure and returns 0, or the milliseconds to wait, without counting it.
_ATTEMPT = f"""{_FORGET_IF_TOO_LONG}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pair, account, address = KEYS[1], KEYS[2], KEYS[3]
local free, attacked, longest, forgotten, most, hour = unpack(ARGV)
forget_if_too_long(address, hour * 1000)
if tonumber(redis.call('GET', address) or 0) >= tonumber(most) then
    return math.max(redis.call('PTTL', address), 1)
end
local wait = tonumber(redis.call('HGET', pair, 'until') or 0) - now
if wait > 0 and wait <= longest * 1000 then return wait end
local failures = redis.call('HINCRBY', pair, 'failures', 1)
redis.call('EXPIRE', pair, forgotten)
if redis.call('INCR', account) > tonumber(attacked) then free = 1 end
redis.call('EXPIRE', account, forgotten)
if redis.call('INCR', address) == 1 then redis.call('EXPIRE', address, hour) end
if failures >= tonumber(free) then
    local seconds = math.min(2 ^ math.min(failures - free, 20), longest)
    redis.call('HSET', pair, 'until', string.format('%.0f', now + seconds * 1000))
end
return 0
"""

# Takes back a guess that was none: it was right, or nobody looked at it. A guess is let pass only where
# no wait is pending, so the wait that stands there now is its own.
_TAKE_BACK = """
if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HINCRBY', KEYS[1], 'failures', -1)
    redis.call('HDEL', KEYS[1], 'until')
end
for _, key in ipairs({KEYS[2], KEYS[3]}) do
    if redis.call('EXISTS', key) == 1 then redis.call('DECR', key) end
end
"""

# Counts one more, or returns the milliseconds until the first of them is forgotten.
_COUNT = f"""{_FORGET_IF_TOO_LONG}
forget_if_too_long(KEYS[1], ARGV[2] * 1000)
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then
    return math.max(redis.call('PTTL', KEYS[1]), 1)
end
if redis.call('INCR', KEYS[1]) == 1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

# Adds to what did not succeed yet and to the caller's count, or returns the milliseconds until there may be
# room.
_RESERVE = f"""{_FORGET_IF_TOO_LONG}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local unfinished, each = KEYS[1], KEYS[2]
local name, caller, most, most_each, window = unpack(ARGV)
forget_if_too_long(each, tonumber(window))
if tonumber(redis.call('HGET', each, caller) or 0) >= tonumber(most_each) then
    return math.max(redis.call('PTTL', each), 1)
end
redis.call('ZREMRANGEBYSCORE', unfinished, '-inf', now)
redis.call('ZREMRANGEBYSCORE', unfinished, now + window + 1, '+inf')
if redis.call('ZCARD', unfinished) >= tonumber(most) then
    return math.max(redis.call('ZRANGE', unfinished, 0, 0, 'WITHSCORES')[2] - now, 1)
end
redis.call('HINCRBY', each, caller, 1)
if redis.call('PTTL', each) < 0 then redis.call('PEXPIRE', each, window) end
redis.call('ZADD', unfinished, now + window, name)
redis.call('PEXPIRE', unfinished, window)
return 0
"""

_RELEASE = """
if ARGV[3] == '1' then redis.call('ZREM', KEYS[1], ARGV[1]) end
local left = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0) - 1
if left > 0 then redis.call('HSET', KEYS[2], ARGV[2], left) else redis.call('HDEL', KEYS[2], ARGV[2]) end
"""


@contextmanager
def attempt(account: str) -> Iterator[None]:
    """One guess at an account's password, made in the block; `InvalidCredentials` from it is a failure.

    `account` is what the caller calls it, whether or not there is such an account.

    Raises:
        TooManyAttempts: it is not this caller's turn yet. The block did not run.
        redis.RedisError: it cannot be counted. The block did not run.
    """
    store, keys = services().redis, _attempt_keys(account)
    numbers = (
        FREE_ATTEMPTS,
        ACCOUNT_FAILURE_LIMIT,
        LONGEST_WAIT_SECONDS,
        FORGOTTEN_AFTER_SECONDS,
        ADDRESS_FAILURES,
        HOUR_SECONDS,
    )
    wait: Any = store.eval(_ATTEMPT, 3, *keys, *map(str, numbers))
    if wait:
        log.warning("throttled", extra={"what": "guesses"})
        raise TooManyAttempts(retry_after=math.ceil(int(wait) / 1000))
    try:
        yield
    except InvalidCredentials:
        raise
    except BaseException:
        # A server's trouble is not the caller's failure.
        with suppress(redis.RedisError):
            store.eval(_TAKE_BACK, 3, *keys)
        raise
    store.eval(_TAKE_BACK, 3, *keys)
    store.delete(*keys[:2])


def reset(account: str) -> None:
    """Forget failed guesses at an account, from this caller's address: its owner has shown up by mail."""
    services().redis.delete(*_attempt_keys(account)[:2])


def hit(what: str, key: str, *, most: int, seconds: int = HOUR_SECONDS) -> None:
    """Count something that may happen `most` times within so many seconds.

    Raises:
        TooManyAttempts
        redis.RedisError
    """
    wait: Any = services().redis.eval(_COUNT, 1, _key(what, key), str(most), str(seconds))
    if wait:
        log.warning("throttled", extra={"what": what})
        raise TooManyAttempts(retry_after=math.ceil(int(wait) / 1000))


def reserve(what: str, name: str, caller: str, *, most: int, most_each: int, seconds: int) -> str:
    """Start something that takes a while, from the request's address. Returns what `release` needs.

    An address may have `most` in so many seconds that did not succeed, and each caller there may have
    `most_each` that have not come to an end. `name` is what is started.

    Raises:
        TooManyAttempts
        redis.RedisError
    """
    room = _key(what, client_address())
    limits = (str(most), str(most_each), str(seconds * 1000))
    wait: Any = services().redis.eval(_RESERVE, 2, room, f"{room}-each", name, caller, *limits)
    if wait:
        log.warning("throttled", extra={"what": what})
        raise TooManyAttempts(retry_after=math.ceil(int(wait) / 1000))
    return room


def release(room: str, name: str, caller: str, *, succeeded: bool) -> None:
    """Note that something has come to an end."""
    services().redis.eval(_RELEASE, 2, room, f"{room}-each", name, caller, str(int(succeeded)))


def client_address() -> str:
    """The address that a request is counted under. One household shares a /64 of IPv6."""
    return network(parse(request.remote_addr or "") or THIS_MACHINE)


def _attempt_keys(account: str) -> tuple[str, str, str]:
    address = client_address()
    return _key("pair", account, address), _key("account", account), _key("address", address)


def _key(kind: str, *names: str) -> str:
    """Redis learns neither names nor addresses: they are hashed, with the key that sessions are."""
    text = "\0".join((kind, *names))
    digest = hmac.new(services().config.secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"throttle:{kind}:{digest[:32]}"
