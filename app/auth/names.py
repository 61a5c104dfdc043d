"""User names and e-mail addresses: the one normal form that decides whether two are the same."""

import re
import unicodedata

# The shape only: whether an address works is known when a mail to it is answered.
# No label of the domain is empty, or has the ideographic full stop, which mail servers take for a dot.
_EMAIL = re.compile(
    r"[^\s@<>()\[\],;:\\\"]{1,64}@([^\s@<>()\[\],;:\\\".\u3002]+\.)+[^\s@<>()\[\],;:\\\".\u3002]+"
)

# Letters and marks that are drawn as nothing ("default ignorable", and the blank of Braille). What else
# is invisible is no letter or not printable.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

_DOTTED_I = re.compile("i\u0307+")

MAX_EMAIL = 254  # RFC 5321 section 4.5.3.1.3, less the angle brackets


def normal_form(text: str) -> str:
    """NFKC, case-folded, trimmed: wide letters, `ADA ` and `ada` are one name."""
    # Folding can undo the normal form (U+0345), so normalize again. It also leaves a dot above the i of
    # `İrem`, which nobody would see and nobody would type.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _DOTTED_I.sub("i", folded)).strip()


def address_form(text: str) -> str:
    """The normal form of an e-mail address: the same, but lower case.

    Folding would make `straße` into `strasse`, which is another domain, and mail would go there.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).strip()


def is_email(address: str) -> bool:
    """Whether an address in normal form may be an e-mail address."""
    if len(address) > MAX_EMAIL or not address.isprintable() or _INVISIBLE.search(address):
        return False
    if "=?" in address:
        return False  # in a mail's header it would be read as encoded text (RFC 2047), for another address
    return _EMAIL.fullmatch(address) is not None
