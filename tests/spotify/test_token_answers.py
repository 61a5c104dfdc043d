"""What the token endpoint's answers mean: to the grant, to us, or nothing yet."""

import json

import pytest

from app.outbound import Answer
from app.spotify.accounts import (
    Grant,
    InvalidGrant,
    Misconfigured,
    RateLimited,
    SpotifyError,
    _grant,
    _refusal,
)

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
def test_a_refusal_is_read_by_status_and_error_alone(
    status: int, body: object, kind: type[SpotifyError]
) -> None:
    assert type(_refusal(Answer(status, {}, json.dumps(body).encode()))) is kind


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"error": "invalid_gr', b"\xff\xfe", b"[" * 99_999]
)
def test_what_is_not_json_says_nothing_about_the_grant(body: bytes) -> None:
    assert type(_refusal(Answer(400, {}, body))) is SpotifyError


@pytest.mark.parametrize(
    "change",
    [
        {"access_token": None},
        {"access_token": ""},
        {"access_token": 5},
        {"access_token": "x" * 8193},
        {"access_token": "a\r\nb"},
        {"access_token": "ä"},
        {"refresh_token": ""},
        {"refresh_token": 5},
        {"expires_in": "3600"},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": True},
        {"expires_in": None},
        {"scope": ["streaming"]},
        {"scope": "x" * 2049},
        {"scope": "\ud800"},
        {"token_type": "MAC"},
    ],
)
def test_an_answer_that_is_not_as_promised_is_no_token(change: dict[str, object]) -> None:
    with pytest.raises(SpotifyError):
        _grant(Answer(200, {}, json.dumps({**GOOD, **change}).encode()))


@pytest.mark.parametrize(("written", "taken"), [(3600.0, 3600), (0.5, 1), (10**9, 86_400)])
def test_a_life_is_taken_in_whole_seconds_of_a_day_at_most(written: float, taken: int) -> None:
    answer = Answer(200, {}, json.dumps({**GOOD, "expires_in": written}).encode())

    assert _grant(answer).expires_in == taken


def test_what_may_be_absent_is_none() -> None:
    body = {"access_token": "BQ-x", "expires_in": 3600}

    assert _grant(Answer(200, {}, json.dumps(body).encode())) == Grant("BQ-x", None, 3600, None)
