"""A call to the Web API as a browser sends it to us: what is passed on, and what is refused before."""

import re
from dataclasses import dataclass
from urllib.parse import quote

from flask import Request

from app.spotify.clients.endpoints import endpoint, scope
from app.web.api import read_body
from app.web.problems import MalformedRequest, UnsupportedMediaType

# With less time left than this, no call is begun.
MIN_SECONDS = 2.0
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


@dataclass(frozen=True)
class Call:
    """One call: `path` is percent-encoded and begins without a slash, `query` is as it was sent."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    content_type: str | None = None
    language: str = ""
    """The Accept-Language header; empty if there is none."""

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def cache_key(self) -> str:
        """What makes two reads of one connection the same: everything that Spotify's response depends on."""
        return f"{self.target} {self.language.lower().replace(' ', '')}"

    @property
    def endpoint(self) -> str:
        return endpoint(self.path)

    @property
    def scope(self) -> str:
        """What a 429 in response to this call is about."""
        return scope(self.path)

    @property
    def is_read(self) -> bool:
        return self.method == "GET"

    @property
    def is_poll(self) -> bool:
        """A read of what changes by the second, which pages ask for again and again."""
        return self.is_read and (self.path == "me/player" or self.path.startswith("me/player/"))


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
