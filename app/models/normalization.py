"""Normal forms, which decide whether two usernames or email addresses are the same."""

import re
import unicodedata

import idna

# Checks only the syntax: a verification email shows whether an address works.
# No label of the domain is empty or contains the ideographic full stop, which mail servers read as a dot.
_EMAIL = re.compile(
    r"[^\s@<>()\[\],;:\\\"]{1,64}@([^\s@<>()\[\],;:\\\".\u3002]+\.)+[^\s@<>()\[\],;:\\\".\u3002]+"
)

# Letters and marks that have no visible form ("default ignorable", and the Braille blank). All other
# invisible characters are not printable.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

_DOTTED_I = re.compile("i\u0307+")

# In octets: RFC 5321 section 4.5.3.1.3 without the angle brackets, and section 4.5.3.1.1.
MAX_EMAIL, MAX_LOCAL_PART = 254, 64
MAX_DOMAIN, MAX_LABEL = 253, 63

# Some scripts need joiners. In a domain, IDNA decides where they are allowed.
_JOINERS = str.maketrans("", "", "\u200c\u200d")


def normal_form(text: str) -> str:
    """Return the text in NFKC, case-folded, and trimmed: `ADA ` and `ada` are the same name."""
    # Folding can undo the normalization (U+0345), so normalize again. It also leaves a dot above the i of
    # `İrem`, which is invisible and cannot be typed.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _DOTTED_I.sub("i", folded)).strip()


def address_form(text: str) -> str:
    """Return the form in which email addresses are compared: lower case, the domain in Unicode labels.

    `Ada@XN--BCHER-KVA.example` and `ada@bücher.example` are one mailbox. The text is not case-folded, which
    would turn `straße` into the different domain `strasse`. A domain that IDNA2008 does not allow keeps its
    spelling, so that accounts from before this rule can be found.
    """
    return _with_domain_labels(lower_form(text), unicode=True)


def spellings(text: str) -> set[str]:
    """Return every form in which the database may hold an address.

    Earlier releases stored the domain as it was typed, with either kind of label.
    """
    typed = lower_form(text)
    return {typed, _with_domain_labels(typed, unicode=True), _with_domain_labels(typed, unicode=False)}


def sending_form(text: str) -> str:
    """Return the form that email is sent to.

    The local part keeps its case, which only the receiving host may interpret (RFC 5321 section 2.4).
    The domain is in A-labels, which all mail servers understand (RFC 5891 section 4.4).
    """
    local, at, domain = unicodedata.normalize("NFKC", text).strip().rpartition("@")
    return _with_domain_labels(f"{local}{at}{lower_form(domain)}", unicode=False)


def login_form(login: str) -> str:
    """Return the normal form of a login: a username, or an email address if it contains an `@`."""
    return address_form(login) if "@" in unicodedata.normalize("NFKC", login) else normal_form(login)


def lower_form(text: str) -> str:
    """Return the text in NFKC, lower case, and trimmed, as earlier releases stored addresses."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).strip()


def _with_domain_labels(address: str, *, unicode: bool) -> str:
    """Return the address with its domain in U-labels or A-labels, unless IDNA2008 does not allow it."""
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
    # Do not apply IDNA's rules to ASCII labels: they would reject `a_b` and `a--b`.
    return label if label.isascii() and not label.startswith("xn--") else idna.alabel(label).decode()


def _u_label(label: str) -> str:
    return idna.ulabel(label) if label.startswith("xn--") else label


def is_email(address: str) -> bool:
    """Return whether this can be an email address, in its normal form or as it was entered."""
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
        # In an email header, `=?` starts encoded text (RFC 2047), which could decode to another address.
        and "=?" not in address
    )
