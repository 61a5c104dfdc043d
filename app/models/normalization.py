"""Usernames and email addresses: the one normal form that decides whether two are the same."""

import re
import unicodedata

import idna

# The syntax only. Whether an address works is known when its owner answers an email.
# No label of the domain is empty or contains the ideographic full stop, which mail servers read as a dot.
_EMAIL = re.compile(
    r"[^\s@<>()\[\],;:\\\"]{1,64}@([^\s@<>()\[\],;:\\\".\u3002]+\.)+[^\s@<>()\[\],;:\\\".\u3002]+"
)

# Letters and marks that are drawn as nothing ("default ignorable", and the blank of Braille). What else
# is invisible is no letter or not printable.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

_DOTTED_I = re.compile("i\u0307+")

# In octets: RFC 5321 section 4.5.3.1.3, less the angle brackets, and section 4.5.3.1.1.
MAX_EMAIL, MAX_LOCAL_PART = 254, 64
MAX_DOMAIN, MAX_LABEL = 253, 63

# In a domain, IDNA decides where the joiners that some scripts need are allowed.
_JOINERS = str.maketrans("", "", "\u200c\u200d")


def normal_form(text: str) -> str:
    """NFKC, case-folded, trimmed: wide letters, `ADA ` and `ada` are one name."""
    # Folding can undo the normal form (U+0345), so normalize again. It also leaves a dot above the i of
    # `İrem`, which cannot be seen and is not on keyboards.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _DOTTED_I.sub("i", folded)).strip()


def address_form(text: str) -> str:
    """Return the form in which email addresses are compared: lower case, the domain as Unicode labels.

    `Ada@XN--BCHER-KVA.example` and `ada@bücher.example` are one mailbox. Lower case rather than case
    folding, which would turn `straße` into the different domain `strasse`. A domain that IDNA2008 does
    not allow keeps the spelling it has, so that accounts from before this rule can still be found.
    """
    return _spelled(lower_form(text), unicode=True)


def spellings(text: str) -> set[str]:
    """Return every form in which the database may hold an address.

    Earlier releases stored the domain as it was typed, with either kind of label.
    """
    typed = lower_form(text)
    return {typed, _spelled(typed, unicode=True), _spelled(typed, unicode=False)}


def sending_form(text: str) -> str:
    """Return the address that mail is sent to.

    The local part keeps its case, which only the receiving host may interpret (RFC 5321 section 2.4).
    The domain is in A-labels, which every mail server understands (RFC 5891 section 4.4).
    """
    local, at, domain = unicodedata.normalize("NFKC", text).strip().rpartition("@")
    return _spelled(f"{local}{at}{lower_form(domain)}", unicode=False)


def login_form(login: str) -> str:
    """Return the normal form of what a person signs in with: a username, or an address if it has an `@`."""
    return address_form(login) if "@" in unicodedata.normalize("NFKC", login) else normal_form(login)


def lower_form(text: str) -> str:
    """Return the text in lower case (NFKC), trimmed: how earlier releases stored addresses."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).strip()


def _spelled(address: str, *, unicode: bool) -> str:
    """Spell the domain in U-labels or A-labels, or leave it alone if IDNA2008 does not allow it."""
    local, at, domain = address.rpartition("@")
    labels = _labels(domain) if at else None
    if labels is None:
        return address
    return f"{local}@{'.'.join(u_label if unicode else a_label for a_label, u_label in labels)}"


def _labels(domain: str) -> list[tuple[str, str]] | None:
    """Return each label of a domain as an A-label and as a U-label, or None if one is not valid."""
    if len(domain) > MAX_DOMAIN:
        return None
    try:
        labels = idna.uts46_remap(domain, std3_rules=False).removesuffix(".").split(".")
        a_labels = [_a_label(label) for label in labels]
        u_labels = [_u_label(label) for label in a_labels]
    except ValueError:  # the base class of idna's errors
        return None
    is_valid = all(0 < len(label) <= MAX_LABEL for label in a_labels)
    return list(zip(a_labels, u_labels, strict=True)) if is_valid else None


def _a_label(label: str) -> str:
    # Labels of ordinary letters are the mail host's business: IDNA's rules would exclude `a_b` and `a--b`.
    return label if label.isascii() and not label.startswith("xn--") else idna.alabel(label).decode()


def _u_label(label: str) -> str:
    return idna.ulabel(label) if label.startswith("xn--") else label


def is_email(address: str) -> bool:
    """Check whether this may be an email address, in its normal form or as it was entered."""
    address = unicodedata.normalize("NFKC", address).strip()
    normal, sent = address_form(address), sending_form(address)
    local, _, domain = sent.rpartition("@")
    typed_local, at, typed_domain = address.rpartition("@")
    visible = f"{typed_local}{at}{typed_domain.translate(_JOINERS)}"
    return (
        _EMAIL.fullmatch(address) is not None
        and _labels(domain) is not None
        and max(len(normal), len(sent.encode())) <= MAX_EMAIL
        and len(local.encode()) <= MAX_LOCAL_PART
        and visible.isprintable()
        and not _INVISIBLE.search(visible)
        # In an email's header, `=?` starts encoded text (RFC 2047), which may stand for another address.
        and "=?" not in address
    )
