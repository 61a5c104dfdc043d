"""A call to the Web API as a browser sends it to us: what is passed on, and what is refused before."""

import re
from urllib.parse import quote

from flask import Request

from app.spotify.clients.call import Call
from app.web.api import read_body
from app.web.problems import MalformedRequest, UnsupportedMediaType

MAX_BODY_BYTES = 256 * 1024
# JSON, and a playlist's cover: https://developer.spotify.com/documentation/web-api/reference/upload-custom-playlist-cover
MEDIA_TYPES = ("application/json", "image/jpeg")

# Spotify's paths begin with one of its own words. What follows may be an id, which is free text for users.
_FIRST = re.compile(r"[a-z][a-z-]*")
_SEGMENT = re.compile(r"(?!\.)[^\x00-\x1f\x7f/\\%\ufffd]+")
# What a decoded path does not show any more: an encoded slash, backslash, dot, percent sign or control
# character. Two servers in a row may read those in two ways.
_ENCODED_TRICK = re.compile(r"%(?:2f|5c|2e|25|[01][0-9a-f]|7f)", re.IGNORECASE)
# Longer lists of languages are cut, so that a header cannot make every read a different one at will.
MAX_LANGUAGES = 8
_LANGUAGE = re.compile(
    r"(?:\*|[a-z]{1,8}(?:-[a-z0-9]{1,8}){0,4})(?:\s*;\s*q=[01](?:\.[0-9]{0,3})?)?", re.IGNORECASE
)
_QUERY = re.compile(r"(?:[!\x22$&-~]|%[0-9a-f]{2})*", re.IGNORECASE)


def read_call(request: Request, path: str) -> Call:
    """The call in a request to `/api/spotify/v1/{path}`; `path` is decoded.

    Raises:
        MalformedRequest: a path that could mean something else to Spotify than to us.
        PayloadTooLarge, UnsupportedMediaType
    """
    sent = request.environ.get("RAW_URI", "").partition("?")[0]
    first, *rest = path.split("/")
    if (
        _ENCODED_TRICK.search(sent)
        or not _FIRST.fullmatch(first)
        or not all(_SEGMENT.fullmatch(segment) for segment in rest)
    ):
        raise MalformedRequest("This is not a path of the Web API.")
    query = request.query_string.decode("latin-1")
    if not _QUERY.fullmatch(query):
        raise MalformedRequest("The query is not percent-encoded.")
    body = read_body(request, MAX_BODY_BYTES)
    method = "GET" if request.method == "HEAD" else request.method
    if body and method == "GET":
        raise MalformedRequest("A GET has no body.")
    if body and request.mimetype not in MEDIA_TYPES:
        raise UnsupportedMediaType(f"The Web API takes {' and '.join(MEDIA_TYPES)}.")
    return Call(
        method,
        quote(path, safe="/:@!$&'()*+,;=~"),
        query,
        body,
        request.content_type if body else None,
        _language(request.headers.get("Accept-Language", "")),
    )


def _language(header: str) -> str:
    """The valid language ranges of an Accept-Language header (RFC 9110 section 12.5.4)."""
    ranges = (part.strip() for part in header[:1024].split(","))
    return ", ".join([part for part in ranges if _LANGUAGE.fullmatch(part)][:MAX_LANGUAGES])
