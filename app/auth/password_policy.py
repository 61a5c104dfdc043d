"""Decides which passwords people may choose, and which characters count as the same."""

import re
import unicodedata
from functools import cache
from pathlib import Path

from app.errors import ValidationError
from app.models import normalization
from app.web.validation import GUESSABLE

MIN_LENGTH = 8  # OWASP ASVS 5.0 V6.2.1
MAX_LENGTH = 256  # long enough for any passphrase, short enough to hash quickly
# Applies before `prepare`, which composes a character from at most four, and is slow for long text.
MAX_TYPED_LENGTH = 4 * MAX_LENGTH

# Words that an attacker of this product would try first.
_PRODUCT_WORDS = ("spotify", "backline", "password", "music", "playlist")

# Characters that people add to a word to satisfy password rules.
_PUNCTUATION = " !?.,;:#$%&*+-_=@/\\()<>'\""
_DIGITS_AND_PUNCTUATION = "0123456789" + _PUNCTUATION

# The space separators of Unicode (Zs) other than U+0020.
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def prepare(password: str) -> str:
    """Return the form that is hashed: the same one, however a keyboard encodes the characters.

    `é` is one code point or two, and a space may be a no-break space. All other differences count.
    Source: RFC 8265 section 4.2.2 (OpaqueString).
    """
    return unicodedata.normalize("NFC", _SPACES.sub(" ", password))


def is_guessable(password: str, *, username: str = "", email: str = "") -> bool:
    """Return whether attackers try this password first.

    They try common passwords (`common_passwords.txt`), the product's words, and the person's username and
    email address; the latter two also with digits and punctuation around them. There are no composition
    rules (OWASP ASVS 5.0 V6.2.4, V6.2.5, V6.2.11).
    """
    # NFKC, because full-width letters do not make a common password harder to guess.
    folded = unicodedata.normalize("NFKC", prepare(password)).casefold()
    bare = folded.strip(_DIGITS_AND_PUNCTUATION)
    address = normalization.address_form(email)
    names = {name for name in (username, *normalization.spellings(email), address.partition("@")[0]) if name}
    # Also compare with what is left of names without digits, unless nothing is.
    bare_names = {name.strip(_DIGITS_AND_PUNCTUATION) for name in names}
    guesses = {*names, *bare_names, *_PRODUCT_WORDS} - {""}
    return folded in _common_passwords() or not guesses.isdisjoint({folded, folded.strip(_PUNCTUATION), bare})


def validate_strength(password: str, *, field: str, username: str = "", email: str = "") -> None:
    """Raise if a password is guessable.

    Raises:
        ValidationError: It is. The error names `field`.
    """
    if is_guessable(password, username=username, email=email):
        raise ValidationError(errors={field: [GUESSABLE]})


@cache
def _common_passwords() -> frozenset[str]:
    text = Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("# "))
