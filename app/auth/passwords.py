"""Passwords: which may be chosen, and argon2id, with the same work whether or not there is a user."""

import os
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from app.errors import ServiceUnavailable, ValidationError
from app.models import normalization
from app.services import services
from app.web.validation import GUESSABLE

MIN_LENGTH = 8  # OWASP ASVS 5.0 V6.2.1
MAX_LENGTH = 256  # long enough for any passphrase, short enough to hash without harm
# Before `prepare`, which composes a character from four at most, and which takes long for longer text.
MAX_TYPED_LENGTH = 4 * MAX_LENGTH

# What somebody who attacks this product would try first.
_PRODUCT_WORDS = ("spotify", "backline", "password", "music", "playlist")

# What is put around a word to make it pass.
_SIGNS = " !?.,;:#$%&*+-_=@/\\()<>'\""
_AROUND = "0123456789" + _SIGNS

# OWASP ASVS 5.0 appendix C: argon2id with 46 MiB, one pass, one lane.
_hasher = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)

# The hash of an unknown value, at the same cost as any user's.
_NOBODY = "$argon2id$v=19$m=47104,t=1,p=1$kX2dGm0b1Yq3nq3o0H1l3g$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

# The space separators of Unicode (Zs) other than U+0020.
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")

# For an account whose owner has to choose a new password.
UNUSABLE = _NOBODY

# One hash uses a processor for 50 ms or so, and 46 MiB: more at once than processors only take longer.
_turns = threading.BoundedSemaphore(os.cpu_count() or 2)
_LONGEST_WAIT_SECONDS = 1.0
_in_line = 0
_line = threading.Lock()


class Match(Enum):
    """How a password compares with a hash."""

    NONE = auto()
    PREPARED = auto()
    AS_TYPED = auto()  # the hash is from a release that did not prepare passwords


def prepare(password: str) -> str:
    """Return the form that is hashed: one for all the ways in which keyboards send the same characters.

    `é` is one code point or two, and a space may be a no-break space. Everything else counts as it is.
    Source: RFC 8265 section 4.2.2 (OpaqueString).
    """
    return unicodedata.normalize("NFC", _SPACES.sub(" ", password))


def is_common(password: str, *, username: str = "", email: str = "") -> bool:
    """Check whether a password is one that is tried first.

    Those are the common ones (`common_passwords.txt`), and the product's words and the person's own
    name or address, these also with digits and punctuation around them. There are no rules of
    composition (OWASP ASVS 5.0 V6.2.4, V6.2.5, V6.2.11).
    """
    # NFKC, because full-width letters do not make a common password harder to guess.
    folded = unicodedata.normalize("NFKC", prepare(password)).casefold()
    bare = folded.strip(_AROUND)
    address = normalization.address_form(email)
    own = {name for name in (username, *normalization.spellings(email), address.partition("@")[0]) if name}
    # A name may itself end in digits; one of nothing else has no bare form, or all numbers would be it.
    guesses = {*own, *(name.strip(_AROUND) for name in own), *_PRODUCT_WORDS} - {""}
    return folded in _common() or not guesses.isdisjoint({folded, folded.strip(_SIGNS), bare})


def validate_strength(password: str, *, field: str, username: str = "", email: str = "") -> None:
    """Raise if a password is guessable.

    Raises:
        ValidationError: under the name of the field.
    """
    if is_common(password, username=username, email=email):
        raise ValidationError(errors={field: [GUESSABLE]})


@contextmanager
def hashing_slot() -> Iterator[None]:
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
    return _hasher.hash(prepare(password))


def verify(password_hash: str | None, password: str) -> Match:
    """Compare a password with a hash. Costs the same for `None`: an unknown user.

    A password that is not in its prepared form costs twice as much, whether or not there is a user.
    Takes a `turn`, unless so many wait for theirs that hardly a thread is left for other requests.

    Raises:
        ServiceUnavailable
    """
    if _in_line >= max(1, services().config.threads - 2):
        raise ServiceUnavailable(retry_after=1)
    prepared = prepare(password)
    with hashing_slot():
        if _verifies(password_hash, prepared):
            return Match.PREPARED
        if prepared != password and _verifies(password_hash, password):
            return Match.AS_TYPED
    return Match.NONE


def _verifies(password_hash: str | None, password: str) -> bool:
    try:
        return _hasher.verify(password_hash or _NOBODY, password) and password_hash is not None
    except (Argon2Error, InvalidHashError):
        return False


def needs_rehash(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


@cache
def _common() -> frozenset[str]:
    text = Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("# "))
