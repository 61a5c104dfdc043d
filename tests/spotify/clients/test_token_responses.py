"""What responses of the token endpoint mean."""

import json

import pytest

from app.infra.http_client import HttpResponse
from app.spotify.clients.accounts import _error_for, _read_tokens
from app.spotify.clients.errors import InvalidGrant, Misconfigured, RateLimited, SpotifyError
from app.spotify.clients.token_response import TokenResponse

GOOD = {"access_token": "BQ-x", "token_type": "Bearer", "expires_in": 3600, "scope": "streaming"}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "invalid_grant", "error_description": "Refresh token revoked"}, InvalidGrant),
        (400, {"error": "invalid_grant", "error_description": "any other words"}, InvalidGrant),
        (400, {"error": "invalid_grant"}, InvalidGrant),
        (401, {"error": "invalid_grant"}, SpotifyError),
        (500, {"error": "invalid_grant"}, SpotifyError),
        (503, {"error": "invalid_grant"}, SpotifyError),
        (400, {"error": "invalid_client", "error_description": "Invalid client"}, Misconfigured),
        (400, {"error": "invalid_client"}, Misconfigured),
        (401, {"error": "invalid_client"}, Misconfigured),
        (400, {"error": "unauthorized_client"}, Misconfigured),
        (400, {"error": "unsupported_grant_type"}, Misconfigured),
        (400, {"error": "invalid_request"}, SpotifyError),
        (400, {"error": {"status": 400, "message": "invalid_grant"}}, SpotifyError),
        (400, {"error": ["invalid_grant"]}, SpotifyError),
        (400, ["invalid_grant"], SpotifyError),
        (400, "invalid_grant", SpotifyError),
        (400, None, SpotifyError),
        (403, {"error": "invalid_client"}, SpotifyError),
        (429, {"error": "invalid_grant"}, RateLimited),
        (302, {}, SpotifyError),
        (201, GOOD, SpotifyError),
    ],
)
def test_error_depends_on_status_and_error_code_only(
    status: int, body: object, kind: type[SpotifyError]
) -> None:
    assert type(_error_for(HttpResponse(status, {}, json.dumps(body).encode()))) is kind


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"error": "invalid_gr', b"\xff\xfe", b"[" * 99_999]
)
def test_error_that_is_not_json_does_not_concern_the_grant(body: bytes) -> None:
    assert type(_error_for(HttpResponse(400, {}, body))) is SpotifyError


def read(body: object, status: int = 200) -> TokenResponse:
    return _read_tokens(
        HttpResponse(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    )


@pytest.mark.parametrize(
    "access_token", [None, "", 5, True, ["BQ-x"], {"BQ": "x"}, "x" * 8193, "a\r\nb", "ä", "\ud800"]
)
@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 401, 429, 500])
def test_new_refresh_token_survives_without_an_access_token(status: int, access_token: object) -> None:
    with pytest.raises(SpotifyError) as failure:
        read({**GOOD, "access_token": access_token, "refresh_token": "AQ-new"}, status)

    assert failure.value.refresh_token == "AQ-new"
    assert "AQ-new" not in f"{failure.value!r} {failure.value}"


INVALID_LIFETIMES: list[object] = [
    0,
    -1,
    True,
    None,
    "",
    "soon",
    "-5",
    "0",
    "nan",
    "inf",
    "1_800",
    "١٨٠٠",
    [60],
    {},
]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"refresh_token": ""}, {}),
        ({"refresh_token": 5}, {}),
        ({"refresh_token": ["AQ-x"]}, {}),
        ({"refresh_token": "\ud800"}, {}),
        ({"refresh_token": "x" * 16_001}, {}),
        ({"refresh_token": "x" * 16_000}, {"refresh_token": "x" * 16_000}),
        ({"refresh_token": " AQ-x\n"}, {"refresh_token": "AQ-x"}),
        ({"refresh_token": "AQ-ä"}, {"refresh_token": "AQ-ä"}),
        ({"expires_in": 3600.0}, {}),
        ({"expires_in": 0.5}, {"expires_in": 1}),
        ({"expires_in": 10**9}, {"expires_in": 86_400}),
        ({"expires_in": "1800"}, {"expires_in": 1800}),
        ({"expires_in": " 1800.9 "}, {"expires_in": 1800}),
        ({"expires_in": "1.8e3"}, {"expires_in": 1800}),
        *(({"expires_in": value}, {"expires_in": 3600}) for value in INVALID_LIFETIMES),
        ({"scope": ["streaming"]}, {"scope": None}),
        ({"scope": "x" * 2049}, {"scope": None}),
        ({"scope": "\ud800"}, {"scope": None}),
        ({"scope": 5}, {"scope": None}),
        ({"scope": " "}, {"scope": None}),
        ({"scope": " streaming\n user-top-read"}, {"scope": "streaming user-top-read"}),
        *(({"token_type": value}, {}) for value in ("MAC", "bearer", "", None, 5, ["Bearer"])),
        ({"error": "none", "x": 9**99, "nested": {"access_token": "BQ-other"}}, {}),
    ],
)
def test_malformed_member_does_not_affect_others(
    change: dict[str, object], expected: dict[str, object]
) -> None:
    good = {"access_token": "BQ-x", "refresh_token": None, "expires_in": 3600, "scope": "streaming"}

    assert vars(read({**GOOD, **change})) == {**good, **expected}


def test_absent_member_is_none() -> None:
    assert read({"access_token": "BQ-x"}) == TokenResponse("BQ-x", None, 3600, None)


WHOLE = b'{"access_token": "BQ-x", "refresh_token": "AQ-x", "expires_in": 1800, "scope": "streaming"}'


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + WHOLE,
        WHOLE.decode().encode("utf-16"),
        WHOLE.decode().encode("utf-32-le"),
        b"\r\n " + WHOLE + b"\n<!-- served by edge-7 -->",
        WHOLE[:-1] + b', "note": "caf\xe9"}',
        WHOLE[:-1] + b', "note": "two\nlines"}',
        WHOLE[:-1] + b', "number": ' + b"9" * 5000 + b"}",
        WHOLE[:-1] + b', "number": -Infinity}',
        WHOLE[:-1] + b', "refresh_token": "", "access_token": null, "expires_in": "soon", "scope": 5}',
        b'{"refresh_token": "AQ-before", "expires_in": 60, ' + WHOLE[1:],
    ],
)
def test_response_in_unusual_json_is_read_completely(body: bytes) -> None:
    assert read(body) == TokenResponse("BQ-x", "AQ-x", 1800, "streaming")


@pytest.mark.parametrize(
    "body",
    [
        WHOLE[:60],
        WHOLE[:-1] + b', "deep": ' + b"[" * 99_999,
        b"[" + WHOLE + b"]",
        b'{"data": ' + WHOLE + b"}",
        b'{"access_token": "BQ-x" "refresh_token": "AQ-x"}',
        b'<pre>{"refresh_token" : "AQ\\u002dx"',
    ],
)
def test_refresh_token_is_salvaged_from_broken_json(body: bytes) -> None:
    with pytest.raises(SpotifyError) as failure:
        read(body)

    assert failure.value.refresh_token == "AQ-x"


@pytest.mark.parametrize(
    "body", [b"", WHOLE[:46], b"null", b'"AQ"', b"<html>", b"\xff\xfe\x00", b"[" * 99_999]
)
def test_response_without_a_token_is_an_error(body: bytes) -> None:
    with pytest.raises(SpotifyError) as failure:
        read(body)

    assert failure.value.refresh_token is None
