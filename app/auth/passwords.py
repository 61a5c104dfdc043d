"""Passwords: which may be chosen, and argon2id, with the same work whether or not there is a user."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from app.parts import parts
from app.problems import ServiceUnavailable, ValidationError

MIN_LENGTH = 8  # OWASP ASVS 5.0 V6.2.1
MAX_LENGTH = 256  # long enough for any passphrase, short enough to hash without harm

# What somebody who attacks this product would try first.
_PRODUCT_WORDS = ("spotify", "backline", "password", "music", "playlist")

# What is put around a word to make it pass.
_SIGNS = " !?.,;:#$%&*+-_=@/\\()<>'\""
_AROUND = "0123456789" + _SIGNS

# OWASP ASVS 5.0 appendix C: argon2id with 46 MiB, one pass, one lane.
_hasher = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)

# Nobody's hash, of a value nobody knows, with the same cost as everybody else's.
_NOBODY = "$argon2id$v=19$m=47104,t=1,p=1$kX2dGm0b1Yq3nq3o0H1l3g$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

# One hash uses a processor for 50 ms or so, and 46 MiB: more at once than processors only take longer.
_turns = threading.BoundedSemaphore(os.cpu_count() or 2)
_LONGEST_WAIT_SECONDS = 1.0
_in_line = 0
_line = threading.Lock()


def refuse_guessable(password: str, *, field: str, username: str = "", email: str = "") -> None:
    """See that a password is none that is tried first.

    Those are the common ones (`common_passwords.txt`), and the product's words and the person's own
    name or address, these also with digits and signs around them. Nothing is asked of how a password
    is composed (OWASP ASVS 5.0 V6.2.4, V6.2.5, V6.2.11).

    Raises:
        ValidationError: under the name of the field.
    """
    folded = password.casefold()
    bare = folded.strip(_AROUND)
    own = {name for name in (username, email, email.partition("@")[0]) if name}
    # A name may itself end in digits; one of nothing else has no bare form, or all numbers would be it.
    guesses = {*own, *(name.strip(_AROUND) for name in own), *_PRODUCT_WORDS} - {""}
    if folded in _common() or not guesses.isdisjoint({folded, folded.strip(_SIGNS), bare}):
        raise ValidationError(
            errors={field: ["Too easy to guess: a common password, or much like your name. Choose another."]}
        )


@contextmanager
def turn() -> Iterator[None]:
    """A turn at the processor, for the hashing in the block.

    As many at once as there are processors; the rest wait for a second at most.

    Raises:
        ServiceUnavailable: this one has waited too long.
    """
    global _in_line  # noqa: PLW0603 - the process's, as its processors are
    with _line:
        _in_line += 1
    try:
        if not _turns.acquire(timeout=_LONGEST_WAIT_SECONDS):
            raise ServiceUnavailable(retry_after=1)
        try:
            yield
        finally:
            _turns.release()
    finally:
        with _line:
            _in_line -= 1


def hash_password(password: str) -> str:
    """The hash to store; its parameters are part of it. Take a `turn` for it."""
    return _hasher.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed. Costs the same for `None`: an unknown user.

    Takes a `turn`, unless so many wait for theirs that hardly a thread is left for other requests.

    Raises:
        ServiceUnavailable
    """
    if _in_line >= max(1, parts().config.threads - 2):
        raise ServiceUnavailable(retry_after=1)
    with turn():
        try:
            return _hasher.verify(password_hash or _NOBODY, password) and password_hash is not None
        except (Argon2Error, InvalidHashError):
            return False


def is_outdated(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


@cache
def _common() -> frozenset[str]:
    text = Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("# "))
