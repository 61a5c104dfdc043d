"""The sandbox's playlists: who may read and change them, and in which forms."""

from typing import Any

import pytest
import requests

from tests.sandbox import shapes
from tests.sandbox.conftest import App, Visitor
from tests.sandbox.shapes import check
from tests.sandbox.test_sandbox_api import error_of


def playlist_called(visitor: Visitor, name: str) -> dict[str, Any]:
    return next(p for p in visitor.get("me/playlists")["items"] if p["name"] == name)


def test_same_calls_create_playlists_with_the_same_ids(app: App) -> None:
    created = []
    for _ in range(2):
        app.sandbox.reset()
        mira = Visitor(app, "mira_t_42")
        created.append([mira("POST", "me/playlists", json={"name": "x"}).json()["id"] for _ in range(2)])
    assert created[0] == created[1]
    assert len(set(created[0])) == 2


def test_playlist_page_url_names_the_user(mira: Visitor) -> None:
    found = mira.get("me/playlists?limit=2")
    assert found["href"] == f"{mira.url}users/mira_t_42/playlists?offset=0&limit=2"


def test_bodies_may_be_sent_in_chunks(mira: Visitor) -> None:
    created = mira("POST", "me/playlists", data=iter([b'{"name": ', b'"In parts"}'])).json()
    assert mira.get(f"playlists/{created['id']}")["name"] == "In parts"


def test_only_own_and_shared_playlists_can_be_read(mira: Visitor, jonas: Visitor) -> None:
    own, foreign = playlist_called(mira, "Rainy tram")["id"], playlist_called(mira, "Bike to work")["id"]
    check(mira.get(f"playlists/{own}"), shapes.OWN_PLAYLIST)
    assert mira.get(f"playlists/{own}/images") == mira.get(f"playlists/{own}")["images"] != []
    page = mira.get(f"playlists/{own}/items?limit=50")
    check(page, shapes.page(shapes.PLAYLIST_ITEM))
    assert None in [entry["item"] for entry in page["items"]]
    check(mira.get(f"playlists/{foreign}"), shapes.FOREIGN_PLAYLIST)
    assert error_of(mira("GET", f"playlists/{foreign}/items")) == (403, "Forbidden")
    shared = playlist_called(jonas, "Sunday with Jonas")["id"]
    assert jonas("GET", f"playlists/{shared}/items").status_code == 200


@pytest.mark.parametrize(
    ("mode", "names"), [("dev2026", {"items"}), ("transition", {"items", "tracks"}), ("legacy", {"tracks"})]
)
def test_playlist_member_names_depend_on_the_mode(mira: Visitor, mode: str, names: set[str]) -> None:
    mira.app.sandbox.settings(mode=mode)
    playlist = playlist_called(mira, "Rainy tram")
    assert {"items", "tracks"} & set(playlist) == names
    old_path = mira("GET", f"playlists/{playlist['id']}/tracks")
    assert old_path.status_code == (403 if mode == "dev2026" else 200)


def test_playlist_can_be_created_and_filled(mira: Visitor) -> None:
    made = mira("POST", "me/playlists", json={"name": "New", "description": "d"})
    assert made.status_code == 201
    check(made.json(), shapes.OWN_PLAYLIST)
    path = f"playlists/{made.json()['id']}/items"
    uris = [track["uri"] for track in mira.get("me/top/tracks?limit=3")["items"]]
    added = mira("POST", path, json={"uris": uris})
    assert added.status_code == 201
    check(added.json(), shapes.SNAPSHOT)
    mira("POST", path, json={"uris": uris[:1], "position": 1})
    assert mira("DELETE", path, json={"items": [{"uri": uris[2]}]}).status_code == 200
    assert [e["item"]["uri"] for e in mira.get(path)["items"]] == [uris[0], uris[0], uris[1]]
    assert mira("PUT", path, json={"uris": uris[2:]}).json()["snapshot_id"] != added.json()["snapshot_id"]
    assert mira.get(path)["total"] == 1
    assert error_of(mira("POST", path, json={"uris": ["spotify:track:x"]})) == (
        400,
        "Invalid track uri in payload",
    )
    assert error_of(mira("POST", "me/playlists", data="{"))[0] == 400


class Playlist:
    """A new playlist of a visitor, with items to choose from."""

    def __init__(self, visitor: Visitor, path: str = "items") -> None:
        self.visitor = visitor
        self.id = visitor("POST", "me/playlists", json={"name": "New"}).json()["id"]
        self.path = f"playlists/{self.id}/{path}"
        self.choice = [track["uri"] for track in visitor.get("me/top/tracks?limit=5")["items"]]

    def __call__(self, method: str, query: str = "", **body: Any) -> requests.Response:
        return self.visitor(method, f"{self.path}{query}", **body)

    def content(self) -> list[int]:
        """Return the items as numbers of the choice."""
        entries = self.visitor.get(f"{self.path}?limit=50")["items"]
        return [self.choice.index((entry.get("item") or entry["track"])["uri"]) for entry in entries]


@pytest.mark.parametrize(
    ("mode", "path"), [("dev2026", "items"), ("transition", "tracks"), ("legacy", "tracks")]
)
def test_items_are_added_in_every_form(mira: Visitor, mode: str, path: str) -> None:
    mira.app.sandbox.settings(mode=mode)
    playlist = Playlist(mira, path)
    one, two, three, four, five = playlist.choice
    for query, body in [
        ("", {"uris": [one]}),
        ("", [two, three]),
        ("?position=0", [four]),
        (f"?uris={five}&position=1", None),
        ("", {"uris": [one], "position": 0}),
    ]:
        added = playlist("POST", query, json=body)
        assert added.status_code == 201
        check(added.json(), shapes.SNAPSHOT)
    assert playlist.content() == [0, 3, 4, 0, 1, 2]
    for query, body in [
        ("?position=7", [one]),
        ("?position=x", [one]),
        ("", []),
        ("", {"uris": one}),
        ("", [1]),
    ]:
        assert error_of(playlist("POST", query, json=body))[0] == 400
    assert len(playlist.content()) == 6


@pytest.mark.parametrize(
    ("move", "order"),
    [
        ({"range_start": 0, "insert_before": 5}, [1, 2, 3, 4, 0]),
        ({"range_start": 3, "insert_before": 0, "range_length": 2}, [3, 4, 0, 1, 2]),
        ({"range_start": 0, "insert_before": 3, "range_length": 2}, [2, 0, 1, 3, 4]),
        ({"range_start": 1, "insert_before": 2, "range_length": 3}, [0, 1, 2, 3, 4]),
        ({"range_start": 5, "insert_before": 0}, None),
        ({"range_start": 4, "insert_before": 0, "range_length": 2}, None),
        ({"range_start": 0, "insert_before": 6}, None),
        ({"range_start": 0}, None),
    ],
)
def test_items_are_moved(mira: Visitor, move: dict[str, int], order: list[int] | None) -> None:
    playlist = Playlist(mira)
    playlist("POST", json=playlist.choice)
    moved = playlist("PUT", json=move)
    assert moved.status_code == (400 if order is None else 200)
    assert playlist.content() == (order or [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("mode", "path"), [("dev2026", "items"), ("legacy", "tracks")])
def test_items_are_removed_by_uri_and_position(mira: Visitor, mode: str, path: str) -> None:
    mira.app.sandbox.settings(mode=mode)
    playlist = Playlist(mira, path)
    one, two, three, *_ = playlist.choice
    playlist("PUT", json={"uris": [one, two, three, two]})
    wrong = playlist("DELETE", json={path: [{"uri": two, "positions": [0]}]})
    assert error_of(wrong) == (400, "Could not remove tracks, please check parameters.")
    assert playlist("DELETE", json={path: [{"uri": two, "positions": [1]}]}).status_code == 200
    assert playlist.content() == [0, 2, 1]
    if path == "tracks":
        assert playlist("DELETE", json={"positions": [0], "snapshot_id": "x"}).status_code == 200
    else:
        assert playlist("DELETE", json={"items": [{"uri": one}]}).status_code == 200
    assert playlist.content() == [2, 1]
    assert playlist("PUT", json={"uris": []}).status_code == 200
    assert playlist.content() == []


def test_episodes_look_like_tracks_to_apps_that_do_not_know_them(mira: Visitor) -> None:
    playlist = Playlist(mira)
    episode = mira.get("search?q=o&type=episode")["episodes"]["items"][0]["uri"]
    playlist("POST", json=[episode])
    item = mira.get(playlist.path)["items"][0]["item"]
    assert (item["uri"], item["album"]["type"], item["track"]) == (episode, "show", True)
    item = mira.get(f"{playlist.path}?additional_types=track,episode")["items"][0]["item"]
    assert (item["uri"], item["episode"], item["track"]) == (episode, True, False)


def test_playlists_can_contain_local_files(mira: Visitor) -> None:
    path = f"playlists/{playlist_called(mira, 'Kitchen, loud')['id']}/items"
    entry = mira.get(path)["items"][-1]
    assert entry["is_local"] is True
    check(entry["item"], shapes.LOCAL_TRACK)
    assert error_of(mira("POST", path, json=[entry["item"]["uri"]])) == (400, "Invalid track uri in payload")


@pytest.mark.parametrize("mode", ["dev2026", "legacy"])
def test_apps_without_a_user_can_read_public_playlists_before_2026(
    app: App, mira: Visitor, mode: str
) -> None:
    public, private = (playlist_called(mira, name)["id"] for name in ("Rainy tram", "Kitchen, loud"))
    app.sandbox.settings(mode=mode)
    token = app.token(grant_type="client_credentials").json()["access_token"]
    assert ("tracks" in app.call(token, "GET", f"playlists/{public}").json()) is (mode == "legacy")
    items = app.call(token, "GET", f"playlists/{public}/items")
    assert items.status_code == (200 if mode == "legacy" else 403)
    assert error_of(app.call(token, "GET", f"playlists/{private}/items")) == (
        403,
        "Insufficient client scope",
    )
    assert app.call(token, "GET", "me/playlists").status_code in (401, 403)


def test_covers_are_accepted_up_to_a_limit(app: App) -> None:
    visitor = Visitor(app, "mira_t_42", "ugc-image-upload playlist-modify-public user-top-read")
    path = f"{Playlist(visitor).path.removesuffix('/items')}/images"
    assert visitor.get(path) == []
    for size, status in ((262_144, 202), (262_145, 413)):
        headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {visitor.token}"}
        url = f"{app.sandbox.api_url}/{path}"
        assert app.http.put(url, data=b"x" * size, headers=headers, timeout=60).status_code == status
    assert len(visitor.get(path)) == 1


@pytest.mark.parametrize("owned", [True, False])
def test_playlists_are_followed_and_unfollowed(mira: Visitor, owned: bool) -> None:
    mira.app.sandbox.settings(mode="transition")
    name = "Rainy tram" if owned else "Bike to work"
    path = f"playlists/{playlist_called(mira, name)['id']}"
    for method, follows in (("DELETE", False), ("PUT", True)):
        assert mira(method, f"{path}/followers").status_code == 200
        assert (name in [p["name"] for p in mira.get("me/playlists")["items"]]) is follows
        assert mira.get(f"{path}/followers/contains?ids=mira_t_42,nobody") == [follows, False]
        assert mira.get(f"{path}/followers/contains") == [follows]
        assert mira.get(path)["name"] == name


def test_every_well_formed_id_is_a_playlist_in_legacy_mode(mira: Visitor) -> None:
    path = "playlists/4uLU6hMCjMI75M1A2tKUQC"
    assert error_of(mira("GET", path)) == (404, "Resource not found")
    mira.app.sandbox.settings(mode="legacy")
    assert mira.get(path)["tracks"]["total"] == 12
    assert error_of(mira("PUT", path, json={"name": "Mine"})) == (403, "Forbidden")
    assert error_of(mira("GET", "playlists/short")) == (400, "Invalid base62 id")


def test_users_are_public_before_2026(mira: Visitor) -> None:
    for path in ("users/jonas.k", "users/jonas.k/playlists"):
        assert error_of(mira("GET", path)) == (403, "Forbidden")
    mira.app.sandbox.settings(mode="transition")
    check(mira.get("users/jonas.k"), shapes.PUBLIC_USER)
    assert [p["name"] for p in mira.get("users/jonas.k/playlists")["items"]] == ["Rainy tram", "Bike to work"]
    assert error_of(mira("GET", "users/nobody"))[0] == 404
    made = mira("POST", "users/mira_t_42/playlists", json={"name": "New"})
    assert (made.status_code, made.json()["owner"]["id"]) == (201, "mira_t_42")
    assert error_of(mira("POST", "users/jonas.k/playlists", json={"name": "New"}))[0] == 403
    mira.app.sandbox.settings(mode="legacy")
    check(mira.get("users/nobody"), shapes.PUBLIC_USER)
    assert len(mira.get("users/nobody/playlists")["items"]) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("name", {"name": "Bike to work"}),
        ("name,owner.id,none", {"name": "Bike to work", "owner": {"id": "jonas.k"}}),
        ("tracks(total,limit)", {"tracks": {"total": 7, "limit": 100}}),
        ("tracks.items(added_by(id),is_local),id",
         {"tracks": {"items": [{"added_by": {"id": "jonas.k"}, "is_local": False}] * 7}, "id": "ID"}),
        ("owner(!href,!external_urls,!uri,!type)", {"owner": {"display_name": "Jonas K.", "id": "jonas.k"}}),
        ("none", {}),
    ],
)  # fmt: skip
def test_fields_select_members(mira: Visitor, fields: str, expected: dict[str, Any]) -> None:
    mira.app.sandbox.settings(mode="legacy")
    playlist = playlist_called(mira, "Bike to work")["id"]
    found = mira.get(f"playlists/{playlist}?fields={fields}")
    assert found == {name: playlist if value == "ID" else value for name, value in expected.items()}
    assert mira.get(f"playlists/{playlist}/tracks?fields=total") == {"total": 7}
