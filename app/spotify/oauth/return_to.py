"""Where in the app a person returns to after connecting: a path on the origin of FRONTEND_URL.

Everything that a browser, the app's router, or a server could read as another origin is rejected, and not
only what the URL standard reads so (https://url.spec.whatwg.org/#concept-basic-url-parser).
"""

import re
from urllib.parse import unquote, unquote_plus

MAX_LENGTH = 2000
# The app finds the result of connecting in these.
RESERVED = frozenset({"spotify", "code", "state", "error"})

_ENCODED = "%[0-9A-Fa-f]{2}"
# What browsers leave as it is in `location.pathname` and `location.search`. They encode the rest, such as
# letters beyond ASCII. Without `#`: the fragments of links in emails have tokens.
_PATH = re.compile(rf"(?:/(?:[!$&'()*+,\-.0-9:;=@A-Z_a-z~|\[\]^]|{_ENCODED})*)+")
# Backslashes, control characters, and what is not UTF-8.
_AMBIGUOUS = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ufffd]")
_QUERY = re.compile(rf"(?:[!$&'()*+,\-./0-9:;=?@A-Z_a-z~|\[\]^`{{}}]|{_ENCODED})*")


def is_return_to(text: str) -> bool:
    """Return whether a text is the path, with or without a query, of a page of the app."""
    path, _, query = text.partition("?")
    if len(text) > MAX_LENGTH or not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        return False
    # `/..//evil.example` is a path of the same origin, but `//evil.example` is not, and browsers and servers
    # remove dots. Some also decode the path first.
    decoded = unquote(path)
    segments = decoded.split("/")[1:]
    return _AMBIGUOUS.search(decoded) is None and "" not in segments[:-1] and not {".", ".."} & set(segments)


def without_reserved(return_to: str) -> str:
    """Return a page without the parameters that would be read as a result of connecting."""
    path, mark, query = return_to.partition("?")
    kept = "&".join(pair for pair in query.split("&") if not _is_reserved(pair))
    return f"{path}?{kept}" if mark and kept else path


def _is_reserved(pair: str) -> bool:
    # vue-router drops another `?` at the beginning.
    return unquote_plus(pair.partition("=")[0]).lstrip("?").strip() in RESERVED
