"""The gateway over HTTP: reads calls from requests, and makes our responses from Spotify's."""

import re
from functools import lru_cache
from urllib.parse import quote

from flask import Request, Response

from app.errors import BacklineError, SpotifyReauthorizationRequired
from app.infra.http_client import HttpResponse
from app.models.snapshots import ConnectionSnapshot
from app.spotify.clients.call import Call
from app.spotify.gateway import metrics
from app.spotify.gateway.links import Links, links_between
from app.spotify.gateway.prepared_call import PreparedCall
from app.spotify.gateway.proxy import Gateway, GatewayBusy, GatewayResponse
from app.spotify.tokens.refresh import GrantEnded
from app.web.api import EncodedResponse, read_body
from app.web.paths import GATEWAY
from app.web.problems import MalformedRequest, UnsupportedMediaType, problem_type
from app.web.security_headers import CONTENT_POLICY
from config import Config

MAX_BODY_BYTES = 256 * 1024
# JSON, and playlist covers: https://developer.spotify.com/documentation/web-api/reference/upload-custom-playlist-cover
MEDIA_TYPES = ("application/json", "image/jpeg")

# Spotify's paths begin with one of its own words. The next segments can be ids, which may contain user input.
_FIRST_SEGMENT = re.compile(r"[a-z][a-z-]*")
_SEGMENT = re.compile(r"(?!\.)[^\x00-\x1f\x7f/\\%\ufffd]+")
# An encoded slash, backslash, dot, percent sign, or control character. The decoded path does not show them,
# and Spotify may decode them differently.
_AMBIGUOUS_ENCODING = re.compile(r"%(?:2f|5c|2e|25|[01][0-9a-f]|7f)", re.IGNORECASE)
# Clients generated from the OpenAPI document encode a whole path as if it were one segment: `me%2Fplayer`.
_ENCODED_AS_ONE_SEGMENT = re.compile(rf"(?:{'|'.join(GATEWAY)})/[^/]+")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_QUERY = re.compile(r"(?:[!\x22$&-~]|%[0-9a-f]{2})*", re.IGNORECASE)
# Longer lists are cut, so that a header cannot give every read its own cache entry.
MAX_LANGUAGES = 8
_LANGUAGE = re.compile(
    r"(?:\*|[a-z]{1,8}(?:-[a-z0-9]{1,8}){0,4})(?:\s*;\s*q=[01](?:\.[0-9]{0,3})?)?", re.IGNORECASE
)
# Response headers that are forwarded, by their names in lower case.
_RESPONSE_HEADERS = {
    name.lower(): name
    for name in ("Content-Type", "Content-Language", "ETag", "Last-Modified", "Location", "Retry-After")
}
# Browsers display these without running anything. Other bodies, and those without a type, are sandboxed.
_INERT_TYPES = ("application/json", "text/plain", "image/jpeg")


def links_for(request: Request, config: Config) -> Links:
    """Return how links are written for the caller, who may use several host names and paths."""
    prefix = next(path for path in GATEWAY if request.path.startswith(f"{path}/"))
    # A request of HTTP/1.0 can be without a Host.
    origin = f"{request.scheme}://{request.host}" if request.host else ""
    return links_between(config.spotify_api_url, origin + prefix)


def read_call(request: Request, path: str, links: Links) -> Call:
    """Read the call from a request to `/api/spotify/v1/{path}`; `path` is decoded.

    One slash at the end is dropped, because libraries such as spotipy call `me/`.

    Raises:
        MalformedRequest: Spotify could read the path or query differently, or a GET has a body.
        PayloadTooLarge: The body is larger than `MAX_BODY_BYTES`.
        UnsupportedMediaType: The body has a type that is not one of `MEDIA_TYPES`.
    """
    path = path.removesuffix("/")
    _require_unambiguous_path(request.environ.get("RAW_URI", "").partition("?")[0], path)
    query = request.query_string.decode("latin-1")
    if not _QUERY.fullmatch(query):
        raise MalformedRequest("The query is not percent-encoded.")
    body = read_body(request, MAX_BODY_BYTES)
    method = "GET" if request.method == "HEAD" else request.method
    if body and method == "GET":
        raise MalformedRequest("A GET has no body.")
    # Some libraries send JSON without a type, which Spotify accepts.
    if body and request.content_type and request.mimetype not in MEDIA_TYPES:
        raise UnsupportedMediaType(f"The Web API accepts {' and '.join(MEDIA_TYPES)}.")
    return Call(
        method,
        quote(path, safe="/:@!$&'()*+,;=~"),
        query,
        body,
        request.content_type if body else None,
        _read_languages(request.headers.get("Accept-Language", "")),
        links.to_spotify(request.headers.get("If-None-Match", "")) if method == "GET" else "",
    )


def forward(
    gateway: Gateway,
    prepared: PreparedCall,
    connection: ConnectionSnapshot,
    grant_id: str | None,
    links: Links,
) -> Response:
    """Forward a call, and count the request by its outcome. Raises what `Gateway.forward` raises."""
    call = prepared.call
    try:
        result = gateway.forward(prepared, connection, grant_id=grant_id)
    except GatewayBusy:
        metrics.count_request(call, "bulkhead-full")
        raise
    except (BacklineError, GrantEnded) as error:
        kind = SpotifyReauthorizationRequired if isinstance(error, GrantEnded) else type(error)
        metrics.count_request(call, problem_type(kind).slug)
        raise
    metrics.count_request(call, _outcome(result.spotify), result.cache)
    return _make_response(result, call, links)


def _make_response(result: GatewayResponse, call: Call, links: Links) -> Response:
    """Create the response to a request from what the gateway returned for its call."""
    spotify, body = result.spotify, result.spotify.body
    headers = {"X-Cache": result.cache, "Age": str(result.age)}
    for name, received in spotify.headers.items():
        forwarded = _RESPONSE_HEADERS.get(name)
        if forwarded is None:
            continue
        value = " ".join(received.split())  # it may be folded
        if forwarded == "ETag":
            value = links.from_spotify(value)
        elif value and forwarded == "Location":
            value = links.rewrite_location(value, call.path)
        if value and value.isprintable():  # gunicorn rejects a response with any other value
            headers[forwarded] = value
    content_type = headers.get("Content-Type", "")
    if content_type.partition(";")[0].strip().lower() == "application/json":
        body = links.rewrite(body)
    if body and not _is_inert(content_type):
        # Opened as a page, it must not run scripts with this API's origin.
        headers["Content-Security-Policy"] = f"{CONTENT_POLICY}; sandbox"
    response = EncodedResponse(body, spotify.status, headers)
    if "Content-Type" not in headers:
        response.headers.pop("Content-Type")
    return response


def _is_inert(content_type: str) -> bool:
    """Return whether browsers display a body of this type without running anything.

    They use the last of several types: `application/json; charset=utf-8, text/html` is HTML.
    """
    return content_type.partition(";")[0].strip() in _INERT_TYPES and "," not in content_type


def _outcome(response: HttpResponse) -> str:
    """Return the label of a response. A lapsed Premium and the allowlist are plain-text 403s."""
    if response.status == 403 and not response.json_object():
        return "403-text"
    return str(response.status)


def _require_unambiguous_path(encoded: str, decoded: str) -> None:
    """Require that Spotify reads a path as we do.

    Raises:
        MalformedRequest: Spotify might read it differently.
    """
    first, *rest = decoded.split("/")
    if _ENCODED_AS_ONE_SEGMENT.fullmatch(encoded):
        encoded = _ENCODED_SLASH.sub("/", encoded)
    if (
        _AMBIGUOUS_ENCODING.search(encoded)
        or not _FIRST_SEGMENT.fullmatch(first)
        or not all(_SEGMENT.fullmatch(segment) for segment in rest)
    ):
        raise MalformedRequest("This is not a path of the Web API.")


@lru_cache(maxsize=256)
def _read_languages(header: str) -> str:
    """Return the valid language ranges of an Accept-Language header (RFC 9110 section 12.5.4)."""
    ranges = (part.strip() for part in header[:1024].split(","))
    return ", ".join([part for part in ranges if _LANGUAGE.fullmatch(part)][:MAX_LANGUAGES])
