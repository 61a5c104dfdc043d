"""The calls of spotipy: every method of its client."""

from typing import Any

import requests
import spotipy

from tests.clients.recording import Recorder, Run, Target, public_methods
from tests.clients.world import FAILURES, ITEMS

# Public methods that are not called, and why.
NOT_CALLED = {"set_auth": "sends nothing"}

TRACKS = [f"spotify:track:{ITEMS[name]}" for name in ("track", "other_track", "third_track")]


def record(target: Target) -> Run:
    """Make all calls."""
    recorder = Recorder(target)
    client = make_client(target.token, recorder)
    for calls in (
        _catalog,
        _browse,
        _search,
        _people,
        _playlists,
        _playlists_by_user,
        _library,
        _player,
        _pages,
    ):
        calls(recorder, client)
    _failures(recorder)
    return Run(recorder.outcomes, recorder.called, public_methods(spotipy.Spotify))


def make_client(token: str, recorder: Recorder, **options: Any) -> spotipy.Spotify:
    """Create a client as a user of spotipy does, and set the base URL and a hook that sees its responses."""
    client = spotipy.Spotify(auth=token, requests_timeout=60, **options)
    client.prefix = f"{recorder.target.base_url}/"

    def add_response(response: requests.Response, **_: Any) -> None:
        recorder.add_response(
            str(response.request.method), response.url, response.status_code, response.headers
        )

    client._session.hooks["response"].append(add_response)
    client._session.trust_env = False
    return client


def _catalog(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    call(client.track, ITEMS["track"])
    call(client.track, f"https://open.spotify.com/track/{ITEMS['track']}", market="US")
    call(client.track, ITEMS["unlisted"])
    call(client.track, "malformed")
    call(client.track, "not/an/id")
    call(client.tracks, [ITEMS["track"], ITEMS["unlisted"]], market="SE")
    call(client.artist, ITEMS["artist"])
    call(client.artists, [ITEMS["artist"], ITEMS["other_artist"]])
    call(client.artist_albums, ITEMS["artist"], limit=1, include_groups="album,single")
    call(client.artist_albums, ITEMS["artist"], limit=50)
    call(client.artist_top_tracks, ITEMS["artist"], country="SE")
    call(client.artist_related_artists, ITEMS["artist"])
    call(client.album, ITEMS["album"], market="US")
    call(client.albums, [ITEMS["album"], ITEMS["other_album"]])
    call(client.album_tracks, ITEMS["album"], limit=2, offset=1)
    call(client.show, ITEMS["show"], market="GB")
    call(client.shows, [ITEMS["show"]])
    call(client.show_episodes, ITEMS["show"], limit=2)
    call(client.episode, ITEMS["episode"])
    call(client.episodes, [ITEMS["episode"]])
    call(client.get_audiobook, ITEMS["audiobook"], market="GB")
    call(client.get_audiobooks, [ITEMS["audiobook"]])
    call(client.get_audiobook_chapters, ITEMS["audiobook"], limit=1)
    call(client.available_markets)
    call(client.audio_features, [ITEMS["track"]])
    call(client.audio_analysis, ITEMS["track"])


def _browse(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    call(client.new_releases, limit=2)
    call(client.categories, locale="sv_SE", limit=2)
    call(client.category, "dinner")
    call(client.category, "unknown")
    call(client.featured_playlists)
    call(client.category_playlists, "dinner")
    call(client.recommendations, seed_tracks=[ITEMS["track"]])
    call(client.recommendation_genre_seeds)


def _search(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    for kind in ("track", "album", "artist", "playlist", "show", "episode", "audiobook"):
        call(client.search, "a", type=kind, limit=3)
    call(client.search, "Salt & Älphabet? #1/2", type="track,album", market="from_token")
    call(client.search, "a", type="unknown")
    call(client.search, "a", limit=51)
    call(client.search_markets, "a", limit=2, markets=["SE", "US"])


def _people(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    call(client.me)
    call(client.current_user)
    call(client.user, ITEMS["other_person"])
    call(client.user_playlists, ITEMS["other_person"], limit=2)
    for method in (client.current_user_top_artists, client.current_user_top_tracks):
        call(method, limit=3, time_range="short_term")
        call(method, time_range="unknown")
    for change in ("follow", "unfollow"):
        call(getattr(client, f"user_{change}_artists"), [ITEMS["artist"]])
        call(client.current_user_following_artists, [ITEMS["artist"]])
        call(getattr(client, f"user_{change}_users"), ["jonas"])
        call(client.current_user_following_users, ["jonas"])
    call(client.current_user_followed_artists, limit=1)


def _playlists(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    call(client.playlist, ITEMS["own_playlist"])
    call(client.playlist, ITEMS["foreign_playlist"], fields="name,owner(id)")
    call(client.playlist_items, ITEMS["own_playlist"], limit=3, offset=4)
    call(client.playlist_items, ITEMS["foreign_playlist"])
    call(client.playlist_tracks, ITEMS["own_playlist"], limit=3)
    call(client.playlist_cover_image, ITEMS["own_playlist"])
    call(client.current_user_follow_playlist, ITEMS["unfollowed_playlist"])
    call(client.playlist_is_following, ITEMS["unfollowed_playlist"], [ITEMS["person"]])
    call(client.current_user_unfollow_playlist, ITEMS["unfollowed_playlist"])
    call(client.playlist_change_details, ITEMS["foreign_playlist"], name="Not mine")
    created = call(client.current_user_playlist_create, "Påsk & co.", description="🎻", public=False)
    new = created["id"]
    call(client.playlist_add_items, new, [*TRACKS, f"spotify:episode:{ITEMS['episode']}"])
    call(client.playlist_add_items, new, TRACKS[:1], position=0)
    call(client.playlist_add_items, new, ["spotify:track:malformed"])
    call(client.playlist_reorder_items, new, 0, 3, 2)
    call(client.playlist_items, new)
    call(client.playlist_remove_all_occurrences_of_items, new, TRACKS[:1])
    call(client.playlist_remove_specific_occurrences_of_items, new, [{"uri": TRACKS[1], "positions": [0]}])
    call(client.playlist_items, new)
    call(client.playlist_replace_items, new, TRACKS)
    call(client.playlist_change_details, new, name="Renamed", public=True, description="Changed")
    call(client.playlist_upload_cover_image, new, ITEMS["cover"])
    call(client.playlist_cover_image, new)
    call(client.playlist_replace_items, new, [])
    call(client.playlist, new)
    call(client.current_user_unfollow_playlist, new)


def _playlists_by_user(recorder: Recorder, client: spotipy.Spotify) -> None:
    call, person = recorder.call, ITEMS["person"]
    call(client.user_playlist, person)
    call(client.user_playlist, person, ITEMS["own_playlist"], fields="name")
    call(client.user_playlist_tracks, person, ITEMS["own_playlist"], limit=2)
    call(client.user_playlist_create, person, "By user", public=True)
    new = client.current_user_playlist_create("For changes by user")["id"]
    call(client.user_playlist_add_tracks, person, new, TRACKS)
    call(client.user_playlist_add_episodes, person, new, [ITEMS["episode"]])
    call(client.user_playlist_reorder_tracks, person, new, 0, 2)
    call(client.user_playlist_remove_all_occurrences_of_tracks, person, new, TRACKS[:1])
    call(
        client.user_playlist_remove_specific_occurrences_of_tracks,
        person,
        new,
        [{"uri": TRACKS[1], "positions": [0]}],
    )
    call(client.user_playlist_replace_tracks, person, new, TRACKS)
    call(client.user_playlist_change_details, person, new, name="Renamed by user")
    call(client.user_playlist_follow_playlist, ITEMS["other_person"], ITEMS["foreign_playlist"])
    call(client.user_playlist_is_following, ITEMS["other_person"], ITEMS["foreign_playlist"], [person])
    call(client.user_playlist_unfollow, person, new)


def _library(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    for kind in ("album", "track", "episode", "show"):
        name = f"current_user_saved_{kind}s"
        for change in ("add", "contains", "delete", "contains"):
            call(getattr(client, f"{name}_{change}"), [ITEMS[kind]])
        call(getattr(client, name), limit=2)
    call(client.current_user_saved_items, [TRACKS[0], f"spotify:album:{ITEMS['album']}"])


def _player(recorder: Recorder, client: spotipy.Spotify) -> None:
    call = recorder.call
    call(client.devices)
    call(client.current_playback, market="SE", additional_types="episode")
    call(client.currently_playing)
    call(client.current_user_playing_track)
    call(client.start_playback, context_uri=f"spotify:album:{ITEMS['album']}", offset={"position": 1})
    call(client.current_playback)
    call(client.start_playback, uris=TRACKS, position_ms=1000)
    call(client.start_playback)
    for method, *args in (
        (client.pause_playback,),
        (client.next_track,),
        (client.previous_track,),
        (client.seek_track, 5000),
        (client.volume, 30),
        (client.repeat, "context"),
        (client.repeat, "unknown"),
        (client.shuffle, True),
        (client.add_to_queue, TRACKS[2]),
        (client.transfer_playback, ITEMS["other_device"]),
        (client.transfer_playback, "unknown"),
    ):
        call(method, *args)
    call(client.pause_playback, device_id="unknown")
    call(client.queue)
    call(client.current_playback)


def _pages(recorder: Recorder, client: spotipy.Spotify) -> None:
    """Follow `next` to the last page, and `previous` back to the first one."""
    call = recorder.call
    first_pages = [
        call(client.search, "a", limit=5, label="first page of search"),
        call(client.current_user_playlists, limit=2, label="first page of playlists"),
        call(client.current_user_saved_tracks, limit=3, label="first page of saved tracks"),
        call(client.playlist_items, ITEMS["own_playlist"], limit=4, label="first page of playlist items"),
        call(client.current_user_recently_played, limit=5, label="first page of recently played"),
        call(client.current_user_followed_artists, limit=1, label="first page of followed artists"),
    ]
    for found in first_pages:
        page = found and next((found[kind] for kind in ("tracks", "artists") if kind in found), found)
        last = None
        while page:
            last = page
            page = call(client.next, page)
            page = page and page.get("tracks", page.get("artists", page))
        if last and "previous" in last:
            call(client.previous, last)
    recent = client.current_user_recently_played(limit=5)
    call(client.current_user_recently_played, limit=2, after=recent["cursors"]["before"])


def _failures(recorder: Recorder) -> None:
    """Meet each failure with a read, a poll, and a command, without the library's own retries."""
    no_retries = {"retries": 0, "status_retries": 0, "status_forcelist": [599]}
    client = make_client(recorder.target.token, recorder, **no_retries)
    recorder.call(make_client("unknown", recorder, **no_retries).me, label="unknown token")
    client.shuffle(False)  # Backline shares polls for a second, until the next command
    sandbox = recorder.target.sandbox
    for name, fault in FAILURES.items():
        sandbox.fault(on="api", times=None, **fault)
        recorder.call(client.track, ITEMS["track"], label=f"{name}, read")
        recorder.call(client.current_playback, label=f"{name}, poll")
        recorder.call(client.add_to_queue, TRACKS[0], label=f"{name}, command")
        sandbox.clear_faults()
        if name != "rate limit":
            recorder.call(client.queue, label=f"{name}, effect")
