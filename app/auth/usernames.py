"""Decides which usernames are allowed: letters with their marks, digits, and . _ - (RFC 8265 section 3.3)."""

import re
import unicodedata
from itertools import pairwise

import idna

MIN_LENGTH, MAX_LENGTH = 2, 64

# Letters and marks that have no visible form: default-ignorable ones, blanks, and a joiner of numbers.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f\U00016fe4\U0001107f\U000e0100-\U000e01ef]"
)
# Invisible marks that stack the next letter (Indic_Syllabic_Category=Invisible_Stacker).
_STACKERS = frozenset(
    "\u1039\u17d2\u1a60\u1bab\uaaf6\U00010a3f\U00011133\U000113d0\U0001193e\U00011a47\U00011a99\U00011f42"
)

# A name is checked as a string of classes: L letter, N nonspacing mark, C spacing mark, S stacker, J joiner
# in a context that allows it, D digit, P one of . _ -, X anything else.
# At most four nonspacing marks (Unicode Technical Standard 39 section 5.4) and six marks in all belong to a
# letter. Stackers and joiners need a letter to act on.
_LETTER = r"L(?!(?:C*N){5})[NC]{0,6}(?:[SJ](?=L))?"
_SHAPE = re.compile(rf"(?:{_LETTER}|D)(?:{_LETTER}|D|P)*")


def is_username(name: str) -> bool:
    """Return whether a name in normal form can be a username."""
    if not MIN_LENGTH <= len(name) <= MAX_LENGTH or _INVISIBLE.search(name):
        return False
    # Decompose, so that a mark counts the same whether or not it is composed with its letter.
    decomposed = unicodedata.normalize("NFD", name)
    classes = "".join(_class_at(decomposed, position) for position in range(len(decomposed)))
    return _SHAPE.fullmatch(classes) is not None and not _repeats_a_mark(decomposed)


def is_label(text: str) -> bool:
    """Return whether a text is printable and has something that can be seen: the name of a token or device.

    Emoji contain invisible characters, so those are allowed beside others.
    """
    seen = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return text.isprintable() and seen.strip() != ""


def _class_at(text: str, position: int) -> str:
    character = text[position]
    if character in "\u200c\u200d":
        return "J" if _can_join(text, position) else "X"
    category = unicodedata.category(character)
    if category in ("Mn", "Mc"):
        return "S" if character in _STACKERS else category[1].upper()
    if category.startswith("L"):
        return "L"
    return "P" if character in "._-" else "D" if character.isalnum() else "X"


def _can_join(text: str, position: int) -> bool:
    """Return whether a joiner changes how its neighbors look (RFC 5892 appendices A.1 and A.2)."""
    try:
        return idna.valid_contextj(text, position)
    except ValueError:  # next to an unassigned code point
        return False


def _repeats_a_mark(decomposed: str) -> bool:
    """Return whether a mark follows itself: most fonts draw one over the other (UTS 39 section 5.4)."""
    return any(
        one == other and unicodedata.category(one).startswith("M") for one, other in pairwise(decomposed)
    )
