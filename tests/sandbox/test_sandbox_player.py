"""The sandbox's player: it follows the clock and commands, and fails as Spotify's does."""

import pytest

from tests.sandbox import shapes
from tests.sandbox.conftest import App, Visitor
from tests.sandbox.shapes import check
from tests.sandbox.test_sandbox_api import error_of

COMMANDS = [
    ("PUT", "me/player/play", None),
    ("PUT", "me/player/pause", None),
    ("POST", "me/player/next", None),
    ("POST", "me/player/previous", None),
    ("PUT", "me/player/seek?position_ms=1000", None),
    ("PUT", "me/player/volume?volume_percent=10", None),
    ("PUT", "me/player/shuffle?state=true", None),
    ("PUT", "me/player/repeat?state=track", None),
    ("POST", "me/player/queue?uri=spotify:track:x", None),
]


def test_player_moves_with_the_clock(mira: Visitor) -> None:
    before = mira.get("me/player")
    mira.app.sandbox.advance(10)
    after = mira.get("me/player")
    assert after["item"]["id"] == before["item"]["id"]
    assert 10_000 <= after["progress_ms"] - before["progress_ms"] < 12_000
    mira.app.sandbox.advance(before["item"]["duration_ms"] / 1000)
    later = mira.get("me/player")
    assert later["item"]["track_number"] == before["item"]["track_number"] + 1
    played = mira.get("me/player/recently-played?limit=1")
    assert played["items"][0]["track"]["id"] == before["item"]["id"]


@pytest.mark.parametrize("repeat", ["off", "track", "context"])
def test_half_a_year_of_listening_is_computed_quickly(mira: Visitor, repeat: str) -> None:
    mira("PUT", f"me/player/repeat?state={repeat}")
    mira.app.sandbox.settings(expires_in=10**9)
    visitor = Visitor(mira.app, "mira_t_42")
    mira.app.sandbox.advance(183 * 86400)
    player = visitor.get("me/player")
    assert player["is_playing"] is (repeat != "off")
    assert player["progress_ms"] < player["item"]["duration_ms"]


def test_pause_and_play_change_the_state(mira: Visitor) -> None:
    assert error_of(mira("PUT", "me/player/play")) == (403, "Player command failed: Restriction violated")
    paused = mira("PUT", "me/player/pause")
    assert (paused.status_code, paused.content) == (204, b"")
    before = mira.get("me/player/currently-playing")
    mira.app.sandbox.advance(60)
    assert mira.get("me/player/currently-playing")["progress_ms"] == before["progress_ms"]
    assert before["actions"] == {"disallows": {"pausing": True}}
    assert error_of(mira("PUT", "me/player/pause"))[0] == 403
    assert mira("PUT", "me/player/play").status_code == 204


def test_skip_seek_shuffle_and_repeat_change_the_state(mira: Visitor) -> None:
    first = mira.get("me/player")["item"]["id"]
    assert mira("POST", "me/player/next").status_code == 204
    assert mira.get("me/player")["item"]["id"] != first
    # Spotify skips back even if the track has played for some time.
    mira.app.sandbox.advance(60)
    mira("POST", "me/player/previous")
    assert mira.get("me/player")["item"]["id"] == first
    mira("PUT", "me/player/seek?position_ms=30000")
    mira("PUT", "me/player/volume?volume_percent=7")
    mira("PUT", "me/player/shuffle?state=true")
    mira("PUT", "me/player/repeat?state=track")
    player = mira.get("me/player")
    assert 30_000 <= player["progress_ms"] < 33_000
    assert player["device"]["volume_percent"] == 7
    assert (player["shuffle_state"], player["repeat_state"]) == (True, "track")
    for bad in (
        "volume?volume_percent=101",
        "seek?position_ms=-1",
        "repeat?state=x",
        "shuffle?state=1",
        "seek",
    ):
        assert error_of(mira("PUT", f"me/player/{bad}"))[0] == 400


def test_queue_plays_before_the_context(mira: Visitor) -> None:
    wanted = mira.get("me/top/tracks?limit=1")["items"][0]
    assert mira("POST", f"me/player/queue?uri={wanted['uri']}").status_code == 204
    assert mira.get("me/player/queue")["queue"][0]["id"] == wanted["id"]
    mira("POST", "me/player/next")
    assert mira.get("me/player")["item"]["id"] == wanted["id"]


def test_episodes_are_played_but_shown_only_to_apps_that_know_them(mira: Visitor) -> None:
    show = mira.get("search?q=ferries&type=show")["shows"]["items"][0]
    first, second, _ = mira.get(f"shows/{show['id']}/episodes")["items"]
    assert mira("PUT", "me/player/play", json={"context_uri": show["uri"]}).status_code == 204
    assert mira("POST", f"me/player/queue?uri={second['uri']}").status_code == 204
    for expected in (first, second):
        for path in ("me/player", "me/player/currently-playing"):
            assert mira.get(path)["item"] is None
            player = mira.get(f"{path}?additional_types=episode,track")
            check(player["item"], shapes.EPISODE)
            assert (player["item"]["id"], player["currently_playing_type"]) == (expected["id"], "episode")
        assert mira.get("me/player/queue")["currently_playing"]["id"] == expected["id"]
        mira("POST", "me/player/next")
    assert first["id"] not in [play["track"]["id"] for play in mira.get("me/player/recently-played")["items"]]


def test_another_context_can_be_started(mira: Visitor) -> None:
    album = mira.get("me/top/tracks?limit=1")["items"][0]["album"]
    body = {"context_uri": album["uri"], "offset": {"position": 1}, "position_ms": 5000}
    assert mira("PUT", "me/player/play", json=body).status_code == 204
    player = mira.get("me/player")
    assert player["context"]["uri"] == album["uri"]
    assert player["item"]["track_number"] == 2
    track = mira.get("me/top/tracks?limit=1&offset=9")["items"][0]["uri"]
    mira("PUT", "me/player/play", json={"uris": [track]})
    assert mira.get("me/player")["item"]["uri"] == track
    assert mira("PUT", "me/player/play", json={"context_uri": "spotify:album:x"}).status_code == 404


@pytest.mark.parametrize(("method", "path", "body"), COMMANDS, ids=[c[1] for c in COMMANDS])
def test_commands_need_premium_a_device_and_a_scope(app: App, method: str, path: str, body: object) -> None:
    free = Visitor(app, "jonas.k")(method, path)
    assert error_of(free) == (403, "Player command failed: Premium required")
    assert free.json()["error"]["reason"] == "PREMIUM_REQUIRED"
    idle = Visitor(app, "aiko-87")(method, path)
    assert error_of(idle) == (404, "Player command failed: No active device found")
    assert idle.json()["error"]["reason"] == "NO_ACTIVE_DEVICE"
    without = Visitor(app, "mira_t_42", "user-read-playback-state")(method, path)
    assert error_of(without) == (403, "Insufficient client scope")


def test_player_without_active_device_gets_204(aiko: Visitor) -> None:
    for path in ("me/player", "me/player/currently-playing"):
        response = aiko("GET", path)
        assert (response.status_code, response.content) == (204, b"")
    assert aiko.get("me/player/queue") == {"currently_playing": None, "queue": []}


def test_playback_is_transferred_to_a_device(aiko: Visitor) -> None:
    (device,) = aiko.get("me/player/devices")["devices"]
    assert device["is_active"] is False
    assert error_of(aiko("PUT", "me/player", json={"device_ids": ["x"]})) == (404, "Device not found")
    assert error_of(aiko("PUT", "me/player", json={"device_ids": []}))[0] == 400
    assert aiko("PUT", "me/player", json={"device_ids": [device["id"]]}).status_code == 204
    assert aiko.get("me/player/devices")["devices"][0]["is_active"] is True
    assert aiko.get("me/player")["item"] is None


def test_recently_played_is_paged_in_both_directions(mira: Visitor) -> None:
    plays = [play["played_at"] for play in mira.get("me/player/recently-played")["items"]]
    assert len(plays) == 12
    first = mira.get("me/player/recently-played?limit=6")
    second = mira.get(first["next"].removeprefix(mira.url))
    assert [play["played_at"] for page in (first, second) for play in page["items"]] == plays
    # On Spotify, only the empty page is the last.
    empty = mira.get(second["next"].removeprefix(mira.url))
    assert (empty["items"], empty["next"], empty["cursors"]) == ([], None, None)
    assert empty["href"] == second["next"]
    newer = mira.get(f"me/player/recently-played?limit=2&after={second['cursors']['before']}")
    assert [play["played_at"] for play in newer["items"]] == plays[-3:-1]
    assert f"after={newer['cursors']['after']}" in newer["next"]
    assert mira.get("me/player/recently-played?after=9999999999999")["cursors"] is None
    assert mira("GET", "me/player/recently-played?after=1&before=2").status_code == 400
