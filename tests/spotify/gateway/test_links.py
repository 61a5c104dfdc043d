"""Links in responses, which come back to the gateway, and the ETags of rewritten responses."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.spotify.gateway.links import Links
from tests.conftest import MakeApp
from tests.helpers.cached_reads import http_headers
from tests.helpers.flows import another_tab
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.upstream import JSON, Received, Reply, Upstream, connect_through

pytestmark = pytest.mark.sqlite_only

GATEWAY = "/api/spotify/v1"
API = "https://api.spotify.com/v1"
BASE = "https://api.example.com/v1"
CACHED = (("Cache-Control", "private, max-age=60"),)


# --- rewriting, without HTTP -----------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        f"{API}/",
        API,
        f"{API}/me?x",
        f" {API}/",
        f'"{API}/',
        f'\\"{API}/',
        "\\",
        '"',
        "/",
        "https://open.spotify.com/",
    ]
)
_TEXT = st.lists(_PIECES | st.text(max_size=5), max_size=4).map("".join)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_ENCODE = st.sampled_from(
    [
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        lambda value: json.dumps(value, indent=1).replace("/", "\\/"),  # as PHP and Rhino do
    ]
)


def rewritten(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(f"{API}/", f"{BASE}/", 1) if value.startswith(f"{API}/") else value
    if isinstance(value, list):
        return [rewritten(inner) for inner in value]
    if isinstance(value, dict):
        return {rewritten(name): rewritten(inner) for name, inner in value.items()}
    return value


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=_VALUE, encode=_ENCODE)
def test_exactly_the_strings_that_start_with_the_url_are_rewritten(
    value: Any, encode: Callable[[Any], str]
) -> None:
    body = encode(value).encode()
    result = Links(API, BASE).rewrite(body)

    assert json.loads(result) == rewritten(value)
    if rewritten(value) == value:
        assert result == body
    # Apart from those strings, no byte changes.
    backwards = Links(BASE, API).rewrite(result)
    assert backwards == body or BASE.encode() in body


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.binary() | st.text(alphabet='"\\/htps:aiofy.cmv1 ').map(str.encode))
def test_bytes_without_the_url_stay_the_same_object(body: bytes) -> None:
    assert Links(API, BASE).rewrite(body) is body


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (f"{API}/playlists/1", f"{BASE}/playlists/1"),
        ("/v1/playlists/1", f"{BASE}/playlists/1"),
        ("playlists/1", f"{BASE}/me/playlists/1"),
        ("/elsewhere", "/elsewhere"),
        ("https://open.spotify.com/playlist/1", "https://open.spotify.com/playlist/1"),
        ("https://api.spotify.com.evil.test/v1/", "https://api.spotify.com.evil.test/v1/"),
        ("https://[", "https://["),
    ],
)
def test_location_of_the_web_api_is_rewritten(location: str, expected: str) -> None:
    assert Links(API, BASE).rewrite_location(location, "me/playlists") == expected


# --- over HTTP -------------------------------------------------------------------------------------


def with_links(upstream: Upstream) -> bytes:
    """Return a body with links, and a text that quotes one."""
    links = {
        "href": f"{upstream.url}/me",
        "next": None,
        "external_urls": {"spotify": "https://open.spotify.com/x"},
    }
    quoted = f'see "{upstream.url}/me" or {upstream.url}/me'
    return json.dumps(
        {**links, "description": quoted, "name": "\u00e5"}, indent=1, ensure_ascii=False
    ).encode()


def test_links_in_json_lead_back_to_the_gateway(connected: FlaskClient, upstream: Upstream) -> None:
    body = with_links(upstream)
    ours = b'"http://localhost/api/spotify/v1/me",'
    expected = body.replace(f'"{upstream.url}/me",'.encode(), ours, 1)
    types = (JSON, "application/json; charset=utf-8", "Application/JSON;charset=UTF-8")
    for number, (content_type, status) in enumerate(itertools.product(types, (200, 400))):
        upstream.replies(Reply(status, body, content_type, CACHED))
        for method in ("GET", "GET", "POST"):
            response = connected.open(f"{GATEWAY}/search?q={number}", method=method)
            assert (response.status_code, response.data) == (status, expected)


def test_other_bodies_stay_unchanged(connected: FlaskClient, upstream: Upstream) -> None:
    body = with_links(upstream)
    for content_type in ("text/plain", "application/json-seq", "application/problem+json", None):
        upstream.replies(Reply(200, body, content_type))
        assert connected.get(f"{GATEWAY}/tracks/x").data == body


def test_slash_at_the_end_of_the_setting_does_not_matter(
    connected: FlaskClient, make_app: MakeApp, upstream: Upstream
) -> None:
    app = make_app(SPOTIFY_API_URL=f"{upstream.url}/")
    upstream.replies(Reply(200, json.dumps({"href": f"{upstream.url}/me"}).encode()))

    response = another_tab(connected, app).get(f"{GATEWAY}/me")

    assert response.json == {"href": f"http://localhost{GATEWAY}/me"}
    assert [call.target for call in upstream.calls] == ["/v1/me"]


def test_location_leads_back_to_the_gateway(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(Reply(201, headers=(("Location", f"{upstream.url}/playlists/1"),)))
    response = connected.post(f"{GATEWAY}/me/playlists", json={})

    assert response.headers["Location"] == "http://localhost/api/spotify/v1/playlists/1"


def get_from(client: FlaskClient, base_url: str, path: str, etags: str | None = None) -> TestResponse:
    """Send a request to one of the API's hosts, with this client's cookie."""
    session = client.get_cookie("backline_session")
    assert session is not None
    headers = {"Cookie": f"backline_session={session.value}"} | ({"If-None-Match": etags} if etags else {})
    anywhere = client.application.test_client(use_cookies=False)
    return anywhere.get(f"{GATEWAY}/{path}", base_url=base_url, headers=headers)


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="60")
def test_shared_response_has_each_callers_links(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(Reply(200, json.dumps({"next": f"{upstream.url}/x"}).encode(), JSON, CACHED))
    hosts = ("http://one.example", "https://two.example", "https://two.example:8443", "http://one.example")
    for base_url, cached in zip(hosts, ("miss", "hit", "hit", "hit"), strict=True):
        response = get_from(connected, base_url, "me/player")
        assert response.json == {"next": f"{base_url}/api/spotify/v1/x"}
        assert response.headers["X-Cache"] == cached
    assert len(upstream.calls) == 1


def test_paging_through_links_reaches_everything(
    mira: FlaskClient,
) -> None:
    """With the sandbox, whose links differ from the paths that were called."""
    found, url = [], f"http://localhost{GATEWAY}/me/playlists?limit=1"
    while url:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("http", "localhost")
        page = mira.get(f"{parts.path}?{parts.query}").json
        found += page["items"]
        url = page["next"]

    assert len(found) == page["total"] > 2
    hrefs = re.findall(r'"href": ?"([^"]+)"', json.dumps(found))
    assert hrefs
    assert all(href.startswith(f"http://localhost{GATEWAY}/") for href in hrefs)


@pytest.mark.settings(TRUSTED_HOSTS="api.example.com", TRUSTED_PROXIES="1")
def test_base_url_is_that_of_the_public_host(app: Flask, sandbox: SandboxClient, upstream: Upstream) -> None:
    """Requests as nginx sends them (deploy/nginx.conf)."""
    https = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    ignored = {"X-Forwarded-Host": "evil.test", "X-Forwarded-Prefix": "/evil", "X-Forwarded-Port": "1"}
    connect_through(client := app.test_client(), sandbox, upstream)
    upstream.replies(Reply(200, json.dumps({"href": f"{upstream.url}/me"}).encode()))

    def get(host: str, **headers: str) -> TestResponse:
        headers |= http_headers(client) | {"Host": host}
        return app.test_client(use_cookies=False).get(f"{GATEWAY}/me", headers=headers)

    for host in ("api.example.com", "api.example.com:443", "api.example.com:8443"):
        expected = f"https://{host.removesuffix(':443')}"
        assert get(host, **https, **ignored).json == {"href": f"{expected}{GATEWAY}/me"}
    for host in ("evil.test", 'api.example.com"', "api.example.com, evil.test"):
        assert get(host, **https).status_code == 400


# --- ETags -----------------------------------------------------------------------------------------


def get_with_etag(client: FlaskClient, path: str, etags: str | None) -> TestResponse:
    headers = {} if etags is None else {"If-None-Match": etags}
    return client.get(f"{GATEWAY}/{path}", headers=headers)


def test_etag_differs_by_base_url_and_is_accepted_again(connected: FlaskClient, upstream: Upstream) -> None:
    def reply(call: Received) -> Reply:
        known = call.headers["If-None-Match"] == etag
        return Reply(304 if known else 200, b"" if known else b"{}", None, (("ETag", etag),))

    upstream.reply = reply
    one, two = "http://one.example", "http://two.example"
    for number, etag in enumerate(('"MC-abc"', 'W/"MC;abc"', '""')):
        upstream.calls.clear()
        path = f"tracks/{number}"
        here, there = get_from(connected, one, path), get_from(connected, two, path)
        sent = here.headers["ETag"]
        again = get_from(connected, one, path, f'"x", {sent}')
        elsewhere = get_from(connected, two, path, sent)

        assert len({etag, sent, there.headers["ETag"]}) == 3
        assert sent.startswith(etag[:-1])
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", sent)
        assert (elsewhere.status_code, elsewhere.data) == (200, b"{}")
        assert [call.headers["If-None-Match"] for call in upstream.calls] == [None, None, etag, None]


def test_etags_are_forwarded_within_limits(connected: FlaskClient, upstream: Upstream) -> None:
    ours = Links(upstream.url, f"http://localhost{GATEWAY}").from_spotify
    numbers = [f'"{number}"' for number in range(12)]
    a, b, empty = map(ours, ('"a"', 'W/"b,c"', '""'))
    sent = {
        a: '"a"',
        f" {a},{b} , {empty}": '"a", W/"b,c", ""',
        "*": "*",
        'a, *, W/, "\u00e9", \'b\', "of spotify"': None,
        ", ".join(map(ours, numbers)): ", ".join(numbers[:8]),
    }
    for header in sent:
        get_with_etag(connected, "me", header.encode().decode("latin-1"))
        connected.put(f"{GATEWAY}/me", headers={"If-None-Match": "*"})

    expected = [found for passed_on in sent.values() for found in (passed_on, None)]
    assert [call.headers["If-None-Match"] for call in upstream.calls] == expected


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="60")
@pytest.mark.parametrize("path", ["me/player", "search?q=a"])
def test_conditional_reads_share_responses_only_with_each_other(
    connected: FlaskClient, upstream: Upstream, path: str
) -> None:
    def reply(call: Received) -> Reply:
        known = call.headers["If-None-Match"] == '"1"'
        return Reply(304 if known else 200, b"" if known else b"[]", None, (*CACHED, ("ETag", '"1"')))

    upstream.reply = reply
    ours = Links(upstream.url, f"http://localhost{GATEWAY}").from_spotify
    for cached in ("miss", "hit"):
        for etags, status, body in ((ours('"1"'), 304, b""), (None, 200, b"[]"), (ours('"0"'), 200, b"[]")):
            response = get_with_etag(connected, path, etags)
            assert (response.status_code, response.data) == (status, body)
            assert (response.headers["X-Cache"], response.headers["ETag"]) == (cached, ours('"1"'))
    assert len(upstream.calls) == 3


def test_invalid_etag_is_omitted(connected: FlaskClient, upstream: Upstream) -> None:
    for etag in ("abc", '"abc', "W/abc", '"a", "b"', 'w/"abc"'):
        upstream.replies(Reply(200, headers=(("ETag", etag),)))
        assert "ETag" not in connected.get(f"{GATEWAY}/me").headers
