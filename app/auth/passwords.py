"""Hashes and verifies passwords with argon2id."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from app.auth.password_policy import prepare
from app.errors import ServiceUnavailable
from app.models.user import UNUSABLE_HASH

# OWASP ASVS 5.0 appendix C: argon2id with 46 MiB, one pass, one lane.
_hasher = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)


class Match(Enum):
    """The result of comparing a password with a hash."""

    NONE = auto()
    PREPARED = auto()
    AS_TYPED = auto()  # the hash is from a release that did not prepare passwords


class Passwords:
    """Hashes and verifies passwords, as many at once as there are processors.

    A hash takes one processor for about 50 ms and 46 MiB of memory, so hashing more at once would only use
    more memory.

    Args:
        threads: The number of threads that handle requests. Two of them never verify passwords.
    """

    MAX_WAIT_SECONDS = 1.0

    def __init__(self, threads: int) -> None:
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 2)
        self._max_callers = max(1, threads - 2)
        self._callers = 0
        self._callers_lock = threading.Lock()

    @contextmanager
    def hashing_slot(self) -> Iterator[None]:
        """Wait for a processor to be free, and occupy it for the block.

        Raises:
            ServiceUnavailable: None was free within a second.
        """
        with self._callers_lock:
            self._callers += 1
        try:
            if not self._slots.acquire(timeout=self.MAX_WAIT_SECONDS):
                raise ServiceUnavailable(retry_after=1)
            try:
                yield
            finally:
                self._slots.release()
        finally:
            with self._callers_lock:
                self._callers -= 1

    def hash(self, password: str) -> str:
        """Return the hash to store, which includes its parameters. Call this in a `hashing_slot`."""
        return _hasher.hash(prepare(password))

    def verify(self, password_hash: str | None, password: str) -> Match:
        """Compare a password with a hash. Takes as long for None, an unknown user.

        A password that is not in its prepared form takes twice as long, whether or not there is a user.

        Raises:
            ServiceUnavailable: Too many callers are waiting, or no processor was free within a second.
        """
        if self._callers >= self._max_callers:
            raise ServiceUnavailable(retry_after=1)
        prepared = prepare(password)
        with self.hashing_slot():
            if _matches(password_hash, prepared):
                return Match.PREPARED
            if prepared != password and _matches(password_hash, password):
                return Match.AS_TYPED
        return Match.NONE

    def needs_rehash(self, password_hash: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        return _hasher.check_needs_rehash(password_hash)


def _matches(password_hash: str | None, password: str) -> bool:
    try:
        return _hasher.verify(password_hash or UNUSABLE_HASH, password) and password_hash is not None
    except (Argon2Error, InvalidHashError):
        return False
