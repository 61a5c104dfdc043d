"""The sandbox's Web API: access, shapes, and removed endpoints."""

import base64

import pytest
import requests

from tests.sandbox import shapes
from tests.sandbox.conftest import ALL_SCOPES, App, Visitor
from tests.sandbox.shapes import Schema, check

UNAUTHORIZED = "Missing/invalid/expired access token"


def error_of(response: requests.Response) -> tuple[int, str]:
    """Check an error's shape, and return its status and message."""
    check(response.json(), shapes.API_ERROR)
    assert response.json()["error"]["status"] == response.status_code
    return response.status_code, response.json()["error"]["message"]


@pytest.mark.parametrize("wording", ["new", "old"])
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("none", "missing_token", "No token provided"),
        ("garbage", "invalid_token", "Invalid access token"),
        ("expired", "invalid_token", "The access token expired"),
    ],
)
def test_missing_or_invalid_token_gets_401(
    mira: Visitor, wording: str, kind: str, error: str, message: str
) -> None:
    mira.app.sandbox.settings(unauthorized_wording=wording)
    mira.app.sandbox.expire_access_tokens()
    header = {
        "none": {},
        "garbage": {"Authorization": "Bearer x"},
        "expired": {"Authorization": f"Bearer {mira.token}"},
    }
    response = mira.app.http.get(f"{mira.app.sandbox.api_url}/me", headers=header[kind], timeout=60)
    assert error_of(response) == (401, message if wording == "old" else UNAUTHORIZED)
    expected = f'Bearer realm="spotify", error="{error}", error_description="{message}"'
    assert response.headers["WWW-Authenticate"] == expected


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic " + base64.b64encode(b"a:b").decode(), "token x"]
)
def test_only_bearer_tokens_are_accepted(app: App, header: str) -> None:
    response = app.http.get(f"{app.sandbox.api_url}/me", headers={"Authorization": header}, timeout=60)
    assert error_of(response) == (400, "Only valid bearer authentication supported")


READS = [
    ("me/player", shapes.PLAYER, "user-read-playback-state", 401),
    ("me/player/currently-playing", shapes.CURRENTLY_PLAYING, "user-read-currently-playing", 401),
    ("me/player/devices", shapes.DEVICES, "user-read-playback-state", 401),
    ("me/player/queue", shapes.QUEUE, "user-read-currently-playing", 401),
    ("me/player/recently-played?limit=3", shapes.RECENTLY_PLAYED, "user-read-recently-played", 403),
    ("me/playlists", shapes.page(shapes.SIMPLE_PLAYLIST), "playlist-read-private", 403),
    ("me/top/tracks", shapes.page(shapes.TRACK), "user-top-read", 403),
    ("me/top/artists?time_range=long_term", shapes.page(shapes.ARTIST), "user-top-read", 403),
    ("me/tracks", shapes.SAVED_TRACKS, "user-library-read", 403),
    ("me/library/contains?uris=spotify:track:x", {"const": [False]}, "user-library-read", 403),
]


@pytest.mark.parametrize(("path", "shape", "scope", "status"), READS, ids=[r[0] for r in READS])
def test_read_has_its_shape_and_needs_its_scope(
    app: App, path: str, shape: Schema, scope: str, status: int
) -> None:
    with_scope = app.call(app.connect(scope=scope)["access_token"], "GET", path)
    assert with_scope.status_code == 200, with_scope.text
    check(with_scope.json(), shape)
    without = app.call(app.connect(scope="ugc-image-upload")["access_token"], "GET", path)
    assert error_of(without) == (
        status,
        "Permissions missing" if status == 401 else "Insufficient client scope",
    )


def test_responses_have_spotifys_headers(mira: Visitor) -> None:
    headers = mira("GET", "me").headers
    assert headers["Cache-Control"] == "private, max-age=0"
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "ETag" not in headers


@pytest.mark.parametrize("person", ["mira_t_42", "jonas.k", "aiko-87", "31xk4zq7w5m2"])
def test_profile_depends_on_the_mode(app: App, person: str) -> None:
    visitor = Visitor(app, person)
    check(visitor.get("me"), shapes.ME_2026)
    assert visitor.get("me")["id"] == person
    for mode in ("transition", "legacy"):
        app.sandbox.settings(mode=mode, account_id=False)
        profile = visitor.get("me")
        check(profile, shapes.ME_BEFORE)
        assert "account_id" not in profile
        assert profile["product"] == ("free" if person == "jonas.k" else "premium")
    check(Visitor(app, person, "streaming").get("me"), shapes.ME_BEFORE)
    assert "email" not in Visitor(app, person, "streaming").get("me")


def test_people_lack_different_members(app: App) -> None:
    aiko = Visitor(app, "aiko-87").get("me")
    assert (aiko["display_name"], aiko["images"]) == (None, [])


@pytest.mark.parametrize("mode", ["dev2026", "legacy"])
@pytest.mark.parametrize(
    "path", ["me/top/tracks?limit=7", "me/playlists?limit=2", "search?q=a&type=track&limit=7"]
)
def test_pages_link_to_each_other(mira: Visitor, path: str, mode: str) -> None:
    mira.app.sandbox.settings(mode=mode)
    seen = []
    while path:
        found = mira.get(path)
        found = found.get("tracks", found)
        seen += [item["id"] for item in found["items"]]
        path = (found["next"] or "").removeprefix(mira.url)
    assert len(seen) == found["total"] == len(set(seen)) > found["limit"]


def test_limits_and_offsets_are_checked(mira: Visitor) -> None:
    assert error_of(mira("GET", "me/top/tracks?limit=51")) == (400, "Invalid limit")
    assert error_of(mira("GET", "me/top/tracks?offset=-1")) == (400, "Invalid offset")


def test_search_returns_at_most_ten(mira: Visitor) -> None:
    found = mira.get("search?q=o&type=album,artist,audiobook,episode,playlist,show,track")
    check(found, shapes.SEARCH)
    assert all(page["total"] for page in found.values())
    assert found["tracks"]["limit"] == 5
    assert "query=o" in found["tracks"]["href"]
    assert found["playlists"]["items"][0] is None
    assert mira("GET", "search?q=a&type=track&limit=10").status_code == 200
    assert error_of(mira("GET", "search?q=a&type=track&limit=11")) == (400, "Invalid limit")
    assert error_of(mira("GET", "search?q=a&type=moon"))[0] == 400
    assert mira.get("search?q=a&type=track&limit=1&offset=999")["tracks"]["next"] is None
    assert error_of(mira("GET", "search?q=a&type=track&limit=1&offset=1000"))[0] == 400
    assert mira.get("search?q=zzz&type=show")["shows"]["total"] == 0
    mira.app.sandbox.settings(mode="legacy")
    assert mira("GET", "search?q=a&type=track&limit=50").status_code == 200
    assert mira.get("search?q=zzz&type=show")["shows"]["total"] > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "tracks?ids=1"), ("GET", "users/jonas.k"), ("POST", "users/mira_t_42/playlists"),
        ("PUT", "me/tracks?ids=1"), ("GET", "me/tracks/contains?ids=1"), ("GET", "artists/1/top-tracks"),
        ("GET", "recommendations"), ("GET", "audio-features/1"), ("GET", "browse/new-releases"),
        ("POST", "playlists/1/tracks"), ("GET", "markets"),
    ],
)  # fmt: skip
def test_removed_endpoints_are_forbidden(mira: Visitor, method: str, path: str) -> None:
    assert error_of(mira(method, path)) == (403, "Forbidden")


@pytest.mark.parametrize("path", ["me/", "me/player/", "search/?q=a&type=track", "me/playlists/"])
def test_one_trailing_slash_is_ignored(mira: Visitor, path: str) -> None:
    assert mira.get(path).keys() == mira.get(path.replace("/?", "?").removesuffix("/")).keys()
    assert error_of(mira("GET", path.replace("/?", "//?") if "?" in path else f"{path}/"))[0] == 404
    assert mira.app.http.post(f"{mira.app.sandbox.url}/api/token/", timeout=60).status_code == 404


def test_unknown_endpoint_gets_404_only_with_a_token(mira: Visitor) -> None:
    assert error_of(mira("GET", "me/nothing")) == (404, "Resource not found")
    assert error_of(mira.app.http.get(f"{mira.app.sandbox.api_url}/me/nothing", timeout=60))[0] == 401
    assert "user-read-email" in ALL_SCOPES
