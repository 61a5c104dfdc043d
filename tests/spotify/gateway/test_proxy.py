"""What the gateway forwards and returns."""

import base64
import gzip
import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from urllib.parse import parse_qsl

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.spotify.clients.endpoints import ENDPOINTS
from tests.conftest import SPA_ORIGIN
from tests.helpers.cached_reads import Store
from tests.helpers.flows import another_tab, slug
from tests.helpers.raw_http import request, send_plain
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, Server
from tests.helpers.upstream import JSON, Received, Reply, Upstream, connect_through

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

GATEWAY = "/api/spotify/v1"

# Every method and path of Spotify's OpenAPI document of 2026-05-31.
OPERATIONS = """
GET albums   GET albums/{id}   GET albums/{id}/tracks
GET artists  GET artists/{id}  GET artists/{id}/albums
GET artists/{id}/related-artists  GET artists/{id}/top-tracks
GET audio-analysis/{id}  GET audio-features  GET audio-features/{id}
GET audiobooks  GET audiobooks/{id}  GET audiobooks/{id}/chapters
GET browse/categories  GET browse/categories/{id}  GET browse/categories/{id}/playlists
GET browse/featured-playlists  GET browse/new-releases
GET chapters  GET chapters/{id}
GET episodes  GET episodes/{id}
GET markets
GET me
GET me/albums      PUT me/albums      DELETE me/albums      GET me/albums/contains
GET me/audiobooks  PUT me/audiobooks  DELETE me/audiobooks  GET me/audiobooks/contains
GET me/episodes    PUT me/episodes    DELETE me/episodes    GET me/episodes/contains
GET me/following   PUT me/following   DELETE me/following   GET me/following/contains
PUT me/library     DELETE me/library  GET me/library/contains
GET me/player      PUT me/player
GET me/player/currently-playing  GET me/player/devices  GET me/player/recently-played
GET me/player/queue      POST me/player/queue
POST me/player/next      POST me/player/previous
PUT me/player/pause      PUT me/player/play    PUT me/player/repeat
PUT me/player/seek       PUT me/player/shuffle PUT me/player/volume
GET me/playlists   POST me/playlists
GET me/shows       PUT me/shows       DELETE me/shows       GET me/shows/contains
GET me/top/artists GET me/top/tracks
GET me/tracks      PUT me/tracks      DELETE me/tracks      GET me/tracks/contains
GET playlists/{id} PUT playlists/{id}
PUT playlists/{id}/followers  DELETE playlists/{id}/followers  GET playlists/{id}/followers/contains
GET playlists/{id}/images     PUT playlists/{id}/images
GET playlists/{id}/items   POST playlists/{id}/items   PUT playlists/{id}/items   DELETE playlists/{id}/items
GET playlists/{id}/tracks  POST playlists/{id}/tracks  PUT playlists/{id}/tracks  DELETE playlists/{id}/tracks
GET recommendations  GET recommendations/available-genre-seeds
GET search
GET shows   GET shows/{id}   GET shows/{id}/episodes
GET tracks  GET tracks/{id}
GET users/{id}  GET users/{id}/playlists  POST users/{id}/playlists
"""
_WORDS = OPERATIONS.split()
EVERY_OPERATION = list(zip(_WORDS[::2], _WORDS[1::2], strict=True))
WITH_ID = [operation for operation in EVERY_OPERATION if "{id}" in operation[1]]
# An id that Spotify generated, and free text that a user with an older account chose.
IDS = ("37i9dQZF1DXcBWIGoYBM5M", "%C3%A5sa%20b:c@d;e,f=g+h&i!")
QUERY = "q=caf%C3%A9+%26%20%2F%3F%23%25&ids=1,2;3&ids=1,2;3&empty=&bare&u=spotify:track:4iV5W9uYEd&~='(*)"
BODY = b'{"name" : "\xf0\x9f\x8e\xb5 \\u00e5", "n":1.0e0,\t"public":true,"public":false}\n'
COVER = base64.b64encode(bytes(range(256)) * 600)
# The only other headers of a request, including those that the HTTP client sets.
HEADERS = {
    "host",
    "user-agent",
    "accept",
    "accept-encoding",
    "accept-language",
    "connection",
    "authorization",
}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BROWSER_HEADERS = {
    "Origin": SPA_ORIGIN,
    "Referer": f"{SPA_ORIGIN}/a-page",
    "X-Requested-With": "XMLHttpRequest",
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Host": "elsewhere.example",
    "Forwarded": "for=192.0.2.7",
    "Authorization": "Basic b2Y6dGhlLXBhZ2U=",
    "User-Agent": "a browser",
    "Accept-Language": "tlh",
    "Range": "bytes=0-1",
    "If-None-Match": '"x"',
    "X-HTTP-Method-Override": "DELETE",
    "traceparent": TRACEPARENT,
    "baggage": "userId=ada",
    "sentry-trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
}


def test_call_arrives_unchanged_without_the_browsers_headers(
    client: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    assert {path for _, path in EVERY_OPERATION} == ENDPOINTS
    token = connect_through(client, sandbox, upstream)
    expected = []
    every = [(*operation, f"{operation[1]}?{QUERY}".replace("{id}", IDS[0])) for operation in EVERY_OPERATION]
    every += [(method, template, template.replace("{id}", IDS[1])) for method, template in WITH_ID]
    for method, template, target in every:
        content_type, body = _body(method, template)
        response = client.open(
            f"{GATEWAY}/{target}",
            method=method,
            headers=BROWSER_HEADERS,
            data=body,
            content_type=content_type,
        )
        assert response.status_code == 200, (method, target, response.text)
        expected.append((method, f"/v1/{target}", content_type, body or b""))

    assert [
        (call.method, call.target, call.headers["Content-Type"], call.body) for call in upstream.calls
    ] == expected
    for call in upstream.calls:
        extra = {"content-type", "content-length"} if call.method != "GET" else set()
        assert {name.lower() for name in call.headers} <= HEADERS | {"traceparent"} | extra
        _, trace, parent, _ = call.headers["traceparent"].split("-")
        assert (trace in TRACEPARENT, parent in TRACEPARENT) == (True, False)
        assert call.headers.get_all("Authorization") == [f"Bearer {token}"]
        assert call.headers["Host"] == upstream.url.split("/")[2]
        assert call.headers["User-Agent"] != "a browser"
        assert call.headers.get_all("Accept-Language") == ["tlh"]


def _body(method: str, template: str) -> tuple[str | None, bytes | None]:
    if method == "GET":
        return None, None
    if template.endswith("/images"):
        return "image/jpeg", COVER
    if method == "POST" and template.startswith("me/player"):
        return None, None
    return "application/json; charset=utf-8", BODY


def test_query_with_other_encoding_keeps_its_meaning(connected: FlaskClient, upstream: Upstream) -> None:
    """Libraries normalize percent-encodings, which results in an equivalent URL (RFC 3986, 6.2.2)."""
    queries = ["q=%c3%a9", "q=%41%7e", 'q="a"&r=<b>|{c}^`d`', "q=[1]&q=[2]"]
    for query in queries:
        connected.get(f"{GATEWAY}/search", query_string=query)

    sent = [parse_qsl(call.target.partition("?")[2]) for call in upstream.calls]
    assert sent == list(map(parse_qsl, queries))


def test_one_slash_at_the_end_is_dropped(connected: FlaskClient, upstream: Upstream) -> None:
    cached = (("Cache-Control", "max-age=60"),)
    upstream.replies(Reply(200, headers=cached))
    connected.get(f"{GATEWAY}/albums/?ids=1,2/")
    without = connected.get(f"{GATEWAY}/albums?ids=1,2/")
    connected.post(f"{GATEWAY}/me/playlists/", json={})

    assert without.headers["X-Cache"] == "hit"
    assert [call.target for call in upstream.calls] == ["/v1/albums?ids=1,2/", "/v1/me/playlists"]


def test_body_is_forwarded_without_being_parsed(connected: FlaskClient, upstream: Upstream) -> None:
    for body in (b"{", b"\x00\xff\xfe", b"null", b" " * 256 * 1024):
        response = connected.put(f"{GATEWAY}/me/player", data=body, content_type=JSON)
        assert response.status_code == 200, response.text

    assert [call.body for call in upstream.calls] == [b"{", b"\x00\xff\xfe", b"null", b" " * 256 * 1024]


def test_body_without_a_type_is_forwarded_without_one(connected: FlaskClient, upstream: Upstream) -> None:
    response = connected.put(f"{GATEWAY}/me/player", data=b"{}", content_type=None)

    assert response.status_code == 200, response.text
    [call] = upstream.calls
    assert (call.body, call.headers["Content-Type"]) == (b"{}", None)


def test_head_is_sent_as_get_and_returned_without_a_body(connected: FlaskClient, upstream: Upstream) -> None:
    response = connected.head(f"{GATEWAY}/me/player")

    assert (response.status_code, response.content_type, response.data) == (200, JSON, b"")
    assert [call.method for call in upstream.calls] == ["GET"]


RESPONSES = {
    "json": Reply(200, b'{"a" : [null, 1.0, "\\u00e5"]}\n', "application/json; charset=utf-8"),
    "a bare word that is labeled as json": Reply(200, b"q7RtZ0", JSON),
    "bad json": Reply(200, b'{"a": ', JSON),
    "not utf-8": Reply(200, b'{"a": "\xe5"}', JSON),
    "created": Reply(201, b'{"snapshot_id":"x"}', JSON),
    "accepted": Reply(202, b"later", "text/plain"),
    "accepted, empty": Reply(202, b"", None),
    "no content": Reply(204, b"", None),
    "no content, with a type": Reply(204, b"", "application/json; charset=utf-8"),
    "junk in a 200": Reply(200, b"AAAA\x00\n", "text/plain; charset=utf-8"),
    "html": Reply(200, b"<!DOCTYPE html><script>alert(1)</script>", "text/html; charset=utf-8"),
    "binary": Reply(200, bytes(range(256)) * 40, "application/octet-stream"),
    "svg": Reply(200, b"<svg onload=alert(1)>", "image/svg+xml"),
    "jpeg": Reply(200, b"\xff\xd8\xff\xe0", "image/jpeg"),
    "empty": Reply(200, b"", None),
    "empty json": Reply(200, b"", JSON),
    "no type": Reply(200, b"what is this", None),
    "not modified": Reply(304, b"", None),
    "bad request": Reply(400, b'{"error":{"status":400,"message":"Invalid limit"}}', JSON),
    "bad request in text": Reply(400, b"Bad request", "text/plain"),
    "not found": Reply(404, b'{"error":{"status":404,"message":"Resource not found"}}', JSON),
    "not found, empty": Reply(404, b"", None),
    "no device": Reply(
        404, b'{"error":{"status":404,"message":"No active device","reason":"NO_ACTIVE_DEVICE"}}', JSON
    ),
    "gone": Reply(410, b"", None),
    "server error": Reply(500, b'{"error":{"status":500,"message":"Server error"}}', JSON),
    "server error in html": Reply(500, b"<h1>500</h1>", "text/html"),
    "unheard of": Reply(299, b"?", "text/x-new"),
    "two types": Reply(200, b"<script>1</script>", "application/json; charset=utf-8, text/html"),
}
# What a browser might execute, or mistake for something that it executes.
SANDBOXED = {"html", "binary", "no type", "server error in html", "unheard of", "svg", "two types"}
CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
OWN_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Origin, Cookie",
    "Access-Control-Allow-Origin": SPA_ORIGIN,
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": (
        "Age, ETag, Location, Retry-After, WWW-Authenticate, X-Cache, X-Request-ID"
    ),
}
NOT_PASSED_ON = (
    ("Set-Cookie", "sp_t=1; Path=/"),
    ("Set-Cookie", "backline_session=; Path=/; Max-Age=0"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Credentials", "false"),
    ("Access-Control-Expose-Headers", "X-Secret"),
    ("Content-Security-Policy", "script-src *"),
    ("Cache-Control", "private, max-age=0"),
    ("Vary", "Authorization"),
    ("X-Content-Type-Options", "none"),
    ("Strict-Transport-Security", "max-age=0"),
    ("Server", "envoy"),
    ("Via", "1.1 google"),
    ("Clear-Site-Data", '"*"'),
    ("WWW-Authenticate", 'Basic realm="give me your password"'),
    ("X-Request-ID", "of-spotify"),
    ("X-Cache", "HIT from elsewhere"),
    ("Link", "<https://elsewhere.example/>; rel=preload"),
    ("Refresh", "0; url=https://elsewhere.example/"),
)


def test_response_is_returned_unchanged_with_our_headers(connected: FlaskClient, upstream: Upstream) -> None:
    for number, (name, reply) in enumerate(RESPONSES.items()):
        method = ("GET", "PUT")[number % 2]
        upstream.replies(Reply(reply.status, reply.body, reply.content_type, NOT_PASSED_ON))
        response = connected.open(f"{GATEWAY}/tracks/{number}", method=method, headers={"Origin": SPA_ORIGIN})

        assert (response.status_code, response.data) == (reply.status, reply.body), name
        assert response.headers.getlist("Content-Type") == list(filter(None, [reply.content_type])), name
        policy = f"{CONTENT_POLICY}; sandbox" if name in SANDBOXED else CONTENT_POLICY
        for header, value in {**OWN_HEADERS, "Content-Security-Policy": policy}.items():
            [sent] = response.headers.getlist(header)
            assert sorted(sent.split(", ")) == sorted(value.split(", ")), (name, header)
        assert response.headers.getlist("X-Cache") == ["miss"]
        assert response.headers.getlist("Age") == ["0"]
        assert response.headers["X-Request-ID"] != "of-spotify"
        ours = {
            *OWN_HEADERS,
            "Content-Security-Policy",
            "Content-Type",
            "Content-Length",
            "X-Cache",
            "Age",
            "X-Request-ID",
        }
        assert set(response.headers.keys()) <= ours, name


def test_response_is_returned_unchanged_by_gunicorn(
    server: Callable[..., AbstractContextManager[Server]], connected: FlaskClient, upstream: Upstream
) -> None:
    session = connected.get_cookie("backline_session")
    assert session is not None
    with server(workers=1, threads=2) as api:
        for number, (name, reply) in enumerate(RESPONSES.items()):
            upstream.replies(reply)
            target = f"{GATEWAY}/tracks/{number}"
            response = send_plain(
                api.port, request("GET", target, f"Cookie: backline_session={session.value}")
            )

            assert (response.status, response.body) == (reply.status, reply.body), name
            assert response.headers.get_all("Content-Type", []) == list(filter(None, [reply.content_type])), (
                name
            )
            assert response.headers.get_all("X-Cache") == ["miss"]


def test_accept_language_is_forwarded_within_limits(connected: FlaskClient, upstream: Upstream) -> None:
    passed_on = {
        "ja": "ja",
        "fr-CH, fr;q=0.9, *;q=0.5": "fr-CH, fr;q=0.9, *;q=0.5",
        "zh-Hant-TW;q=1,,  ,de ;q=0": "zh-Hant-TW;q=1, de ;q=0",
        "": None,
        "\u00e9, <script>, en;q=2, en;level=1": None,
        ",".join(f"a{letter}" for letter in "abcdefghijklm"): "aa, ab, ac, ad, ae, af, ag, ah",
    }
    for sent, method in zip(passed_on, itertools.cycle(("GET", "PUT")), strict=False):
        headers = {"Accept-Language": sent.encode().decode("latin-1")}
        connected.open(f"{GATEWAY}/me", method=method, headers=headers)

    assert [call.headers["Accept-Language"] for call in upstream.calls] == [*passed_on.values()]


def test_cache_distinguishes_languages(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.reply = lambda call: Reply(
        200, (call.headers["Accept-Language"] or "none").encode(), headers=(("Cache-Control", "max-age=60"),)
    )
    languages = {"ja": b"ja", "en;q=0.5, de": b"en;q=0.5, de", None: b"none"}
    for cached in ("miss", "hit"):
        for language, body in languages.items():
            headers = {"Accept-Language": language} if language else {}
            response = connected.get(f"{GATEWAY}/tracks/1", headers=headers)
            assert (response.data, response.headers["X-Cache"]) == (body, cached)
    respelled = connected.get(f"{GATEWAY}/tracks/1", headers={"Accept-Language": "EN;q=0.5,DE"})
    assert respelled.headers["X-Cache"] == "hit"


def test_unexpected_304_is_not_stored(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(Reply(304, b"", None, CACHED))
    responses = [connected.get(f"{GATEWAY}/search?q=a") for _ in range(2)]
    assert [(each.status_code, each.headers["X-Cache"]) for each in responses] == [(304, "miss")] * 2


def test_descriptive_response_headers_are_returned(connected: FlaskClient, upstream: Upstream) -> None:
    headers = {
        "Content-Language": "sv",
        "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        "Location": "https://api.spotify.com/v1/playlists/abc",
        "Retry-After": "7",
    }
    upstream.replies(Reply(201, headers=tuple(headers.items())))

    response = connected.post(f"{GATEWAY}/me/playlists", json={})

    assert {name: response.headers[name] for name in headers} == headers


def test_folded_or_invalid_header_does_not_break_a_response(
    connected: FlaskClient, upstream: Upstream
) -> None:
    unusual = (("Content-Language", "sv,\r\n de"), ("ETag", '"\xe5\x01"'), ("Location", "/a\r\n\tb"))
    upstream.replies(Reply(200, b"[]", "text/plain;\r\n charset=utf-8", unusual))

    response = connected.get(f"{GATEWAY}/me")

    assert (response.status_code, response.data) == (200, b"[]")
    assert response.mimetype == "text/plain"
    assert response.headers["Content-Language"] == "sv, de"
    assert "ETag" not in response.headers  # gunicorn would respond 500


def test_compressed_response_is_returned_uncompressed(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(Reply(200, gzip.compress(b'{"a":1}'), JSON, (("Content-Encoding", "gzip"),)))

    response = connected.get(f"{GATEWAY}/me")

    assert response.data == b'{"a":1}'
    assert "Content-Encoding" not in response.headers


def test_redirect_is_neither_followed_nor_returned(connected: FlaskClient, upstream: Upstream) -> None:
    for status in (300, 301, 302, 303, 307, 308):
        upstream.calls.clear()
        upstream.replies(Reply(status, headers=(("Location", f"{upstream.url}/elsewhere"),)))
        response = connected.get(f"{GATEWAY}/tracks/{status}")
        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert "Location" not in response.headers
        assert [call.target for call in upstream.calls] == [f"/v1/tracks/{status}"]


def test_response_is_limited_to_8_mib(connected: FlaskClient, upstream: Upstream) -> None:
    most = 8 * 1024 * 1024
    upstream.reply = lambda call: Reply(200, b" " * (most + ("more" in call.target)))

    response = connected.get(f"{GATEWAY}/tracks/all")
    assert (response.status_code, len(response.data)) == (200, most)

    response = connected.get(f"{GATEWAY}/tracks/more")
    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")


# --- ownership -------------------------------------------------------------------------------------


def test_simultaneous_reads_of_two_people_get_their_own_responses(
    new_client: Callable[[], FlaskClient], another_worker: Flask, sandbox: SandboxClient, upstream: Upstream
) -> None:
    ada, bob = new_client(), new_client()
    tokens = {
        connect_through(ada, sandbox, upstream): "ada",
        connect_through(bob, sandbox, upstream, "aiko-87"): "bob",
    }
    assert len(tokens) == 2
    both = threading.Barrier(2, timeout=LONG)

    def reply(call: Received) -> Reply:
        both.wait()
        return Reply(200, json.dumps({"of": tokens[call.token or ""]}).encode(), JSON, CACHED)

    upstream.reply = reply
    with ThreadPoolExecutor(2) as pool:
        for target in ("me/player", "search?q=x"):
            calls = [pool.submit(client.get, f"{GATEWAY}/{target}") for client in (ada, bob)]
            assert [future.result().json["of"] for future in calls] == ["ada", "bob"]
    # Shared responses of another worker too.
    assert len(upstream.calls) == 4
    for client, name in ((ada, "ada"), (bob, "bob")):
        again = another_tab(client, another_worker).get(f"{GATEWAY}/search?q=x")
        assert (again.json["of"], again.headers["X-Cache"]) == (name, "hit")
    assert len(upstream.calls) == 4


CACHED = (("Cache-Control", "private, max-age=60"),)
PRIVATE_BODY = b'{"a": "secret of ada"}'


def test_gateway_makes_no_call_without_a_connection(client: FlaskClient, upstream: Upstream) -> None:
    for response in (client.get(f"{GATEWAY}/me"), client.post(f"{GATEWAY}/me/player/next")):
        assert (response.status_code, slug(response)) == (409, "spotify-not-connected")
    assert upstream.calls == []


def test_rejected_token_is_not_replaced_after_a_disconnect(
    connected: FlaskClient, app: Flask, upstream: Upstream
) -> None:
    arrived, released = threading.Event(), threading.Event()

    def reply(_: Received) -> Reply:
        arrived.set()
        assert released.wait(LONG)
        return Reply(401, PRIVATE_BODY, JSON, CACHED)

    upstream.reply = reply
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(another_tab(connected).get, f"{GATEWAY}/me/tracks")
        assert arrived.wait(LONG)
        connected.delete("/api/spotify")
        released.set()
        response = late.result()

    assert (response.status_code, slug(response)) == (409, "spotify-not-connected")
    assert stored_responses(app) == {}
    assert len(upstream.calls) == 1


def stored_responses(app: Flask) -> dict[bytes, bytes]:
    """Return the stored responses of all connections."""
    store: Store = app.extensions["backline"].redis
    found: dict[bytes, bytes] = {}
    for key in store.keys("shared:*}"):
        found |= store.hgetall(key)
    return found
