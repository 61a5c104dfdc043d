"""What people save and follow in the sandbox, under the current and the former paths."""

from typing import Any

import pytest

from tests.sandbox import shapes
from tests.sandbox.conftest import App, Visitor
from tests.sandbox.shapes import Schema, check
from tests.sandbox.test_sandbox_api import error_of

FIRST, SECOND = "4uLU6hMCjMI75M1A2tKUQC", "7ouMYWpwJ422jRcDASZB7P"
SCOPES = "user-library-read user-library-modify user-follow-read user-follow-modify user-read-private"
SAVED = [
    ("album", shapes.ALBUM),
    ("audiobook", shapes.AUDIOBOOK),
    ("episode", shapes.EPISODE),
    ("show", shapes.SIMPLE_SHOW),
    ("track", shapes.TRACK),
]


@pytest.fixture
def fan(app: App) -> Visitor:
    return Visitor(app, "mira_t_42", SCOPES)


def test_library_saves_and_removes_items(mira: Visitor) -> None:
    uri = "spotify:album:4uLU6hMCjMI75M1A2tKUQC"
    assert mira.get(f"me/library/contains?uris={uri}") == [False]
    assert mira("PUT", f"me/library?uris={uri}").status_code == 200
    assert mira.get(f"me/library/contains?uris={uri},spotify:track:x") == [True, False]
    assert mira("DELETE", f"me/library?uris={uri}").content == b""
    assert mira.get(f"me/library/contains?uris={uri}") == [False]
    assert mira("PUT", "me/library?uris=" + ",".join([uri] * 41)).status_code == 400
    assert mira("PUT", "me/library?uris=nonsense").status_code == 400


@pytest.mark.parametrize(("kind", "shape"), SAVED, ids=[kind for kind, _ in SAVED])
def test_saved_items_are_listed_newest_first(fan: Visitor, kind: str, shape: Schema) -> None:
    before = fan.get(f"me/{kind}s")
    check(before, shapes.page(shapes.object_schema({"added_at": shapes.DATE, kind: shape})))
    assert before["total"] > 0
    fan.app.sandbox.settings(mode="legacy")
    fan("PUT", f"me/library?uris=spotify:{kind}:{FIRST}")
    assert fan.get(f"me/{kind}s?limit=1")["items"][0][kind]["id"] == FIRST
    assert fan.get(f"me/{kind}s")["total"] == before["total"] + 1


@pytest.mark.parametrize(
    "path",
    ["me/albums?", "me/audiobooks?", "me/episodes?", "me/shows?", "me/tracks?",
     "me/following?type=artist&", "me/following?type=user&"],
)  # fmt: skip
def test_former_endpoints_take_ids_in_every_form(fan: Visitor, path: str) -> None:
    ids, contains = f"{FIRST},{SECOND}", path.replace("?", "/contains?")
    for method in ("PUT", "DELETE"):
        assert error_of(fan(method, f"{path}ids={ids}")) == (403, "Forbidden")
    assert error_of(fan("GET", f"{contains}ids={ids}")) == (403, "Forbidden")
    fan.app.sandbox.settings(mode="transition")
    bodies: list[Any] = [[SECOND], {"ids": [SECOND]}, {"timestamped_ids": [{"id": SECOND}]}]
    for query, body, found in [
        (f"ids={ids}", None, [True, True]),
        *(("", body, [False, True]) for body in bodies),
    ]:
        for method, expected in (("PUT", found), ("DELETE", [False, False])):
            response = fan(method, f"{path}{query}", json=body)
            assert (response.status_code, response.content) == (204 if "following" in path else 200, b"")
            assert fan.get(f"{contains}ids={ids}") == expected
    for body in (None, {"ids": "x"}, [1], [FIRST] * 51):
        assert error_of(fan("PUT", path, json=body))[0] == 400


def test_followed_artists_are_paged_by_cursor(fan: Visitor) -> None:
    fan.app.sandbox.settings(mode="legacy")
    fan("PUT", f"me/following?type=artist&ids={FIRST},{SECOND}")
    everything = fan.get("me/following?type=artist")["artists"]
    check(everything, shapes.FOLLOWED_ARTISTS)
    ids = [artist["id"] for artist in everything["items"]]
    assert len(ids) == everything["total"] > 2
    seen, path = [], "me/following?type=artist&limit=1"
    while path:
        found = fan.get(path)["artists"]
        seen += [artist["id"] for artist in found["items"]]
        path = (found["next"] or "").removeprefix(fan.url)
    assert seen == ids
    assert error_of(fan("GET", "me/following?type=user"))[0] == 400


def test_playlists_are_followed_through_the_library(mira: Visitor) -> None:
    playlist = next(p for p in mira.get("me/playlists")["items"] if p["name"] == "Bike to work")
    for method, follows in (("DELETE", False), ("PUT", True)):
        mira(method, f"me/library?uris={playlist['uri']}")
        assert mira.get(f"me/library/contains?uris={playlist['uri']}") == [follows]
        assert (playlist["id"] in [p["id"] for p in mira.get("me/playlists")["items"]]) is follows
