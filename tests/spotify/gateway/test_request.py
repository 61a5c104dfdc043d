"""Requests that the gateway rejects. None of them reaches Spotify."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from flask.testing import FlaskClient

from tests.helpers.flows import slug
from tests.helpers.raw_http import RawResponse, request, send_plain
from tests.helpers.servers import Server
from tests.helpers.upstream import JSON, Upstream

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

GATEWAY = "/api/spotify/v1"
HOST = "127.0.0.1"
MAX_BODY = 256 * 1024

# Paths after `/api/spotify/v1/` that different servers read differently.
PATHS_WITHOUT_SPACES = r"""
# parent folders
..  ../me  ../../api/token  me/..  me/../me  me/player/../../../../admin  playlists/abc/../../me
me/...
# the current folder
.  ./me  me/.  me/./player
# empty
/  /me  //evil.example/me  me//  me//player  me/player//
# the same, encoded differently
%2e%2e/me  %2E%2e/me  .%2e/me  %2e/me  me/%2e%2e  me/%2e%2e/me  me/%2E  %2fme  me%2f%2fplayer
me%2f..%2f..%2fadmin  me%2f%2e%2e%2fadmin  me%2f%252fx  me/..%2fplayer  playlists/a%2Fb  me/%2f
# a separator for some servers
me\player  me/..\..\admin  me%5cplayer  me/..%5C..  %5c%5cevil.example
# encoded twice
me/%252e%252e/x  me/%252fx  me/%255c  me/%2500  me/%25  %256de
# control characters
me%00  me/%00  me/a%00b  me%0d%0aHost:%20evil.example  me/x%0d%0aX-Injected:%201  me/x%0a  me/x%0D
me/x%09  me/x%1f  me/x%7f
# not UTF-8: bare, cut short, overlong slash and dot, a surrogate, beyond Unicode, Latin-1
me/%ff  me/%c3  me/%c0%af  me/%c0%ae%c0%ae/x  me/%e0%80%af  me/%ed%a0%80  me/%f4%90%80%80  me/%e5sa
# other hosts
http://evil.example/me  https://evil.example  https:evil.example  http:%2f%2fevil.example/me
https:/evil.example/me  file:///etc/passwd  evil.example/me  evil.example:443/me  @evil.example/me
%40evil.example/me  user:password@evil.example/me  :80/me  :@evil.example  127.0.0.1:6379/me
[::1]/me
# a first word that Spotify does not use
;/me  me;/player  me;x=../player  ..;/me  me/..;/admin  me/.;/player  me@x  me:80  ME  Me/player
me%20/player  %20me  +me  me%3f/player  me%23/player  -me  v1  1/me  *
"""
_LINES = [line for line in PATHS_WITHOUT_SPACES.splitlines() if not line.startswith("#")]
PATHS = ["", "m\xe9", "\uff4d\uff45", *" ".join(_LINES).split()]


def cookie(client: FlaskClient) -> str:
    found = client.get_cookie("backline_session")
    assert found is not None
    return f"Cookie: backline_session={found.value}"


def check(response: RawResponse) -> None:
    assert 400 <= response.status < 500, response.body
    assert response.headers["Content-Type"] == "application/problem+json"


def test_ambiguous_path_is_rejected(connected: FlaskClient, upstream: Upstream) -> None:
    for path in PATHS:
        for method in ("GET", "PUT"):
            response = connected.open(f"{GATEWAY}/{path}", method=method)
            assert 400 <= response.status_code < 500, (path, response.status)
            assert slug(response) in ("malformed-request", "not-found"), path

    assert upstream.calls == []


def test_path_that_is_encoded_as_one_segment_is_decoded(connected: FlaskClient, upstream: Upstream) -> None:
    """Clients generated from the OpenAPI document send such paths."""
    for path in ("me%2Fplayer", "me%2fplayer%2fdevices", "me%2f", "search%2F?q=a%2Fb"):
        assert connected.get(f"{GATEWAY}/{path}").status_code == 200, path

    assert [call.name for call in upstream.calls] == [
        "GET me/player",
        "GET me/player/devices",
        "GET me",
        "GET search?q=a%2Fb",
    ]


OTHER_TARGETS = [
    "http://evil.example/api/spotify/v1/../me",
    "http://evil.example/v1/me",
    "https://evil.example:443/",
    "evil.example:443",
    "//evil.example/api/spotify/v1/me",
    "/api/spotify/v1/http://evil.example/",
    "/api/spotify//v1/me",
    "/api/spotify/v1/../v1/me",
    "/api/spotify/./v1/me",
    "/api/spotify/v2/me",
    "/api/spotify/v1",
    "/api/spotify/v1/",
    "/API/spotify/v1/me",
    "*",
]

Api = Callable[[bytes], RawResponse]


def test_gunicorn_rejects_what_no_http_client_would_send(
    server: Callable[..., AbstractContextManager[Server]], connected: FlaskClient, upstream: Upstream
) -> None:
    with server(workers=1, threads=4, TRUSTED_HOSTS=HOST) as running:

        def api(sent: bytes) -> RawResponse:
            return send_plain(running.port, sent)

        for check_requests in (check_paths, check_targets, check_hosts, check_bodies):
            upstream.calls.clear()
            check_requests(api, cookie(connected), upstream)


def check_paths(api: Api, cookie: str, upstream: Upstream) -> None:
    raw = [path.encode() for path in PATHS]
    raw += [
        b"me/\xff",
        b"me/\xc0\xae\xc0\xae/x",
        b"me\x00",
        b"me/a\tb",
        b"me/a b",
        b"me/%",
        b"me/%zz",
        b"me/%2",
    ]
    raw += [b"me/%u002e%u002e/x", b"me\r/player", b"me\x0b", b"me#/../x", b"me/\x7f"]
    for path in raw:
        sent = request("GET", "TARGET", cookie, host=HOST)
        response = api(sent.replace(b"TARGET", GATEWAY.encode() + b"/" + path))
        # A fragment is not part of a request, so clients do not send it.
        if response.status == 200:
            assert path == b"me#/../x", path
        else:
            check(response)

    assert {call.target for call in upstream.calls} <= {"/v1/me"}


def check_targets(api: Api, cookie: str, upstream: Upstream) -> None:
    for target in OTHER_TARGETS:
        check(api(request("GET", target, cookie, host=HOST)))

    assert upstream.calls == []


def check_hosts(api: Api, cookie: str, upstream: Upstream) -> None:
    for host in ("evil.example", "api.spotify.com", "127.0.0.1@evil.example", "127.0.0.1.evil.example", ""):
        check(api(request("GET", f"{GATEWAY}/me", cookie, host=host)))
    check(api(request("GET", f"{GATEWAY}/me", cookie, "Host: evil.example", host=HOST)))
    assert upstream.calls == []

    # Only the path of a complete URL counts. The settings determine the host that is called.
    response = api(request("GET", f"http://evil.example{GATEWAY}/me", cookie, host=HOST))

    assert response.status in (200, 400)
    assert all(call.headers["Host"] in upstream.url for call in upstream.calls)


def check_bodies(api: Api, cookie: str, upstream: Upstream) -> None:
    def put(body: bytes, *headers: str, method: str = "PUT", content_type: str = JSON) -> RawResponse:
        lines = [cookie, f"Content-Type: {content_type}", *headers]
        return api(request(method, f"{GATEWAY}/me/player", *lines, body=body, host=HOST))

    in_chunks = "Transfer-Encoding: chunked"
    rejected = [
        (413, put(b" " * (MAX_BODY + 1))),
        (413, put(b" " * 4 * MAX_BODY)),
        (413, put(chunked(b" " * MAX_BODY, b" "), in_chunks)),
        (413, put(chunked(*[b" " * 65_536] * 40), in_chunks)),
        (415, put(chunked(b"{}"), in_chunks, content_type="text/plain")),
        (400, put(chunked(b"{}"), in_chunks, method="GET")),
        (400, put(b"{}", method="GET")),
        (400, put(b"zz\r\n{}\r\n0\r\n\r\n", in_chunks)),
        (400, put(b"", "Content-Length: -1")),
        (400, put(b"", "Content-Length: 1_0")),
    ]
    for status, response in rejected:
        check(response)
        assert response.status == status, response.body
    assert upstream.calls == []

    for response in (put(b" " * MAX_BODY), put(chunked(*[b" " * 65_536] * 4), in_chunks)):
        assert response.status == 200, response.body
    assert [call.body for call in upstream.calls] == [b" " * MAX_BODY] * 2
    assert {call.headers["Transfer-Encoding"] for call in upstream.calls} == {None}


def test_query_that_is_not_percent_encoded_is_rejected(connected: FlaskClient, upstream: Upstream) -> None:
    for query in ("q=a b", "q=\u00e9", "q=\x7f", "q=100%", "q=%zz&x=%20", "q=%4", "q=%u0041"):
        response = connected.get(f"{GATEWAY}/search", environ_overrides={"QUERY_STRING": query})
        assert (response.status_code, slug(response)) == (400, "malformed-request"), query

    assert upstream.calls == []


def test_unsupported_body_or_method_is_rejected(connected: FlaskClient, upstream: Upstream) -> None:
    for method, content_type, body, status, expected in (
        ("PUT", JSON, b" " * (MAX_BODY + 1), 413, "payload-too-large"),
        ("PUT", "image/jpeg", b" " * (MAX_BODY + 1), 413, "payload-too-large"),
        ("PUT", "text/plain", b"{}", 415, "unsupported-media-type"),
        ("POST", "application/x-www-form-urlencoded", b"a=b", 415, "unsupported-media-type"),
        ("POST", "multipart/form-data; boundary=x", b"--x--", 415, "unsupported-media-type"),
        ("DELETE", "application/jsonp", b"{}", 415, "unsupported-media-type"),
        ("PUT", "image/png", b"{}", 415, "unsupported-media-type"),
        ("GET", JSON, b"{}", 400, "malformed-request"),
        ("GET", "text/plain", b"x", 400, "malformed-request"),
        ("HEAD", JSON, b"{}", 400, None),
        ("PATCH", JSON, b"{}", 405, "method-not-allowed"),
        ("TRACE", None, b"", 405, "method-not-allowed"),
        ("CONNECT", None, b"", 405, "method-not-allowed"),
    ):
        url = f"{GATEWAY}/me/player"
        response = connected.open(url, method=method, data=body, content_type=content_type)
        assert response.status_code == status, response.text
        assert expected is None or slug(response) == expected
    assert upstream.calls == []


def chunked(*chunks: bytes) -> bytes:
    return b"".join(
        f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in itertools.chain(chunks, [b""])
    )


def test_page_of_another_site_cannot_make_a_call(connected: FlaskClient, upstream: Upstream) -> None:
    for method, headers in (
        ("POST", {"X-Requested-With": ""}),
        ("PUT", {"Origin": "https://evil.example"}),
        ("DELETE", {"Sec-Fetch-Site": "cross-site"}),
    ):
        response = connected.open(f"{GATEWAY}/me/player", method=method, headers=headers)
        assert (response.status_code, slug(response)) == (403, "cross-site-request")

    assert upstream.calls == []
