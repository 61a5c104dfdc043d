"""The sandbox's catalog: shapes, several ids at once, markets, and invented items."""

from typing import Any

import pytest

from tests.sandbox import shapes
from tests.sandbox.conftest import Visitor
from tests.sandbox.shapes import Schema, check, page
from tests.sandbox.test_sandbox_api import error_of

UNKNOWN = "4uLU6hMCjMI75M1A2tKUQC"
# Kind, shape, and shape of the simplified object, if that is what a request for several returns.
OBJECTS = [
    ("album", shapes.ALBUM),
    ("artist", shapes.ARTIST),
    ("audiobook", shapes.AUDIOBOOK),
    ("chapter", shapes.CHAPTER),
    ("episode", shapes.EPISODE),
    ("show", shapes.SHOW),
    ("track", shapes.TRACK),
]
PARTS = [
    ("album", "tracks", shapes.SIMPLE_TRACK),
    ("artist", "albums", shapes.SIMPLE_ALBUM),
    ("audiobook", "chapters", shapes.SIMPLE_CHAPTER),
    ("show", "episodes", shapes.SIMPLE_EPISODE),
]


def one(visitor: Visitor, kind: str) -> str:
    """Return the id of an item in the catalog."""
    if kind == "chapter":
        return str(visitor.get(f"audiobooks/{one(visitor, 'audiobook')}")["chapters"]["items"][0]["id"])
    return str(visitor.get(f"search?q=o&type={kind}")[f"{kind}s"]["items"][0]["id"])


@pytest.mark.parametrize(("kind", "shape"), OBJECTS, ids=[kind for kind, _ in OBJECTS])
def test_items_have_their_shapes(mira: Visitor, kind: str, shape: Schema) -> None:
    item_id = one(mira, kind)
    item = mira.get(f"{kind}s/{item_id}")
    check(item, shape)
    for image in item.get("images", ()):
        assert mira.app.http.get(image["url"], timeout=60).status_code == 200
    assert error_of(mira("GET", f"{kind}s/{UNKNOWN}")) == (404, "Resource not found")
    assert error_of(mira("GET", f"{kind}s/{UNKNOWN}x")) == (400, "Invalid base62 id")
    mira.app.sandbox.settings(mode="transition")
    found = mira.get(f"{kind}s?ids={UNKNOWN},{item_id}")
    assert found.keys() == {f"{kind}s"}
    assert [item and item["id"] for item in found[f"{kind}s"]] == [None, item_id]
    assert error_of(mira("GET", f"{kind}s?ids={item_id},x")) == (400, "Invalid base62 id")
    assert error_of(mira("GET", f"{kind}s?ids=" + ",".join([item_id] * 51)))[0] == 400


@pytest.mark.parametrize(("kind", "parts", "shape"), PARTS, ids=[kind for kind, *_ in PARTS])
@pytest.mark.parametrize("invented", [False, True], ids=["listed", "invented"])
def test_items_list_their_parts(mira: Visitor, kind: str, parts: str, shape: Schema, invented: bool) -> None:
    item_id = UNKNOWN[:-1] + "0" if invented else one(mira, kind)
    if invented:
        mira.app.sandbox.settings(mode="legacy")
    found = mira.get(f"{kind}s/{item_id}/{parts}")
    if not invented:
        check(found, page(shape))
    assert found["total"] > 0
    for part in found["items"]:
        whole: Any = mira.get(f"{parts}/{part['id']}")
        whole = whole["artists"][0] if kind == "artist" else whole[kind]
        assert whole["id"] == item_id


@pytest.mark.parametrize("kind", [kind for kind, _ in OBJECTS])
@pytest.mark.parametrize("settings", [{"mode": "legacy"}, {"mode": "transition", "any_id": True}], ids=str)
def test_every_well_formed_id_can_exist(mira: Visitor, kind: str, settings: dict[str, Any]) -> None:
    mira.app.sandbox.settings(**settings)
    expected = mira.get(f"{kind}s/{one(mira, kind)}").keys()
    assert mira.get(f"{kind}s/{UNKNOWN}").keys() == expected
    assert error_of(mira("GET", f"{kind}s/{UNKNOWN[1:]}"))[0] == 400


def test_invented_people_have_a_playlist(mira: Visitor) -> None:
    mira.app.sandbox.settings(mode="legacy")
    found = [mira.get("users/nobody/playlists")["items"] for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 1
    assert mira.get("browse/categories/toplists")["id"] == "toplists"
    assert error_of(mira("GET", "browse/categories/top-lists"))[0] == 404


def test_artists_have_albums_and_top_tracks(mira: Visitor) -> None:
    artist = mira.get("search?q=ferry&type=artist")["artists"]["items"][0]["id"]
    assert error_of(mira("GET", f"artists/{artist}/albums?limit=11")) == (400, "Invalid limit")
    assert len(mira.get(f"artists/{artist}/albums?include_groups=single,compilation")["items"]) == 1
    mira.app.sandbox.settings(mode="legacy")
    assert mira.get(f"artists/{artist}/albums?limit=50")["total"] == 2
    tracks = mira.get(f"artists/{artist}/top-tracks?market=AT")["tracks"]
    assert len(tracks) == 7
    assert {track["artists"][0]["id"] for track in tracks} == {artist}


def test_market_decides_what_can_be_played(mira: Visitor) -> None:
    path = f"tracks/{one(mira, 'track')}"
    assert error_of(mira("GET", f"{path}?market=Austria")) == (400, "Invalid market code")
    assert mira.get(f"{path}?market=AQ")["restrictions"] == {"reason": "market"}
    mira.app.sandbox.settings(mode="legacy")
    track = mira.get(path)
    assert ("AT" in track["available_markets"], "is_playable" in track) == (True, False)
    for market in ("AT", "from_token"):
        track = mira.get(f"{path}?market={market}")
        assert (track["is_playable"], "available_markets" in track) == (True, False)
    assert mira.get(f"{path}?market=AQ")["is_playable"] is False
    without_scope = Visitor(mira.app, "mira_t_42", "user-top-read")
    assert error_of(without_scope("GET", f"{path}?market=from_token"))[0] == 403


def test_resume_points_need_a_scope(mira: Visitor) -> None:
    path = f"episodes/{one(mira, 'episode')}"
    assert "resume_point" not in mira.get(path)
    assert "resume_point" in Visitor(mira.app, "mira_t_42", "user-read-playback-position").get(path)


def test_new_releases_categories_and_markets_can_be_browsed(mira: Visitor) -> None:
    for path in ("browse/new-releases", "browse/categories", "browse/categories/party", "markets"):
        assert error_of(mira("GET", path)) == (403, "Forbidden")
    mira.app.sandbox.settings(mode="transition")
    releases = mira.get("browse/new-releases?limit=3")["albums"]
    dates = [album["release_date"] for album in releases["items"]]
    assert dates == [
        "2026-08-28",
        "2026-03-14",
        "2025-05-23",
    ]
    categories = mira.get("browse/categories")["categories"]
    check(categories, page(shapes.CATEGORY))
    assert mira.get("browse/categories/party") in categories["items"]
    assert error_of(mira("GET", f"browse/categories/{UNKNOWN}"))[0] == 404
    assert {"AT", "US"} <= set(mira.get("markets")["markets"])
    mira.app.sandbox.settings(mode="legacy")
    check(mira.get(f"browse/categories/{UNKNOWN}"), shapes.CATEGORY)
    assert error_of(mira("GET", "browse/featured-playlists")) == (403, "Forbidden")
