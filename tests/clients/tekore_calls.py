"""The calls of tekore: every method of its client."""

from typing import Any

import httpx
import tekore

from tests.clients.recording import Recorder, Run, Target, public_methods
from tests.clients.world import FAILURES, ITEMS

# Public methods that are not called, and why.
NOT_CALLED = {
    "chunked": "sends nothing",
    "close": "sends nothing",
    "follow_short_link": "calls another host, without the token",
    "max_limits": "sends nothing",
    "send": "every method calls it",
    "token_as": "sends nothing",
}

TRACKS = [f"spotify:track:{ITEMS[name]}" for name in ("track", "other_track", "third_track")]


class Client(tekore.Spotify):  # type: ignore[misc]  # it has no type information
    """The client with another base URL, set in the method that its documentation names for such changes."""

    def __init__(self, token: str, recorder: Recorder) -> None:
        def add_response(response: httpx.Response) -> None:
            request = response.request
            recorder.add_response(request.method, request.url, response.status_code, response.headers)

        http = httpx.Client(event_hooks={"response": [add_response]}, trust_env=False, timeout=60)
        super().__init__(token, sender=tekore.SyncSender(http))
        self._base_url = recorder.target.base_url

    def send(self, request: tekore.Request) -> Any:
        if not request.url.startswith("http"):
            request.url = f"{self._base_url}/{request.url}"
        return super().send(request)


def record(target: Target) -> Run:
    """Make all calls."""
    recorder = Recorder(target)
    client = Client(target.token, recorder)
    for calls in (_catalog, _browse, _search, _people, _playlists, _library, _player, _pages, _failures):
        calls(recorder, client)
    client.close()
    return Run(recorder.outcomes, recorder.called, public_methods(tekore.Spotify))


def _catalog(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    call(client.track, ITEMS["track"])
    call(client.track, ITEMS["track"], market="US")
    call(client.track, ITEMS["track"], market="from_token")
    call(client.track, ITEMS["unlisted"])
    call(client.track, "malformed")
    call(client.tracks, [ITEMS["track"], ITEMS["other_track"]], market="SE")
    call(client.artist, ITEMS["artist"])
    call(client.artists, [ITEMS["artist"], ITEMS["other_artist"]])
    call(client.artist_albums, ITEMS["artist"], include_groups=["album", "single"], limit=1)
    call(client.artist_top_tracks, ITEMS["artist"], "SE")
    call(client.artist_related_artists, ITEMS["artist"])
    call(client.album, ITEMS["album"], market="US")
    call(client.albums, [ITEMS["album"], ITEMS["other_album"]])
    call(client.album_tracks, ITEMS["album"], limit=2, offset=1)
    call(client.show, ITEMS["show"], market="GB")
    call(client.shows, [ITEMS["show"]])
    call(client.show_episodes, ITEMS["show"], limit=2)
    call(client.episode, ITEMS["episode"])
    call(client.episodes, [ITEMS["episode"]])
    call(client.audiobook, ITEMS["audiobook"], market="GB")
    call(client.audiobooks, [ITEMS["audiobook"]])
    call(client.audiobook_chapters, ITEMS["audiobook"], limit=1)
    call(client.chapter, ITEMS["chapter"])
    call(client.chapters, [ITEMS["chapter"]])
    call(client.track_audio_features, ITEMS["track"])
    call(client.tracks_audio_features, [ITEMS["track"]])
    call(client.track_audio_analysis, ITEMS["track"])


def _browse(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    call(client.markets)
    call(client.new_releases, limit=2)
    call(client.categories, locale="sv_SE", limit=2)
    call(client.category, "dinner")
    call(client.category, "unknown")
    call(client.featured_playlists)
    call(client.category_playlists, "dinner")
    call(client.recommendations, track_ids=[ITEMS["track"]])
    call(client.recommendation_genre_seeds)


def _search(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    for kind in ("track", "album", "artist", "playlist", "show", "episode", "audiobook"):
        call(client.search, "a", types=(kind,), limit=3)
    call(client.search, "Salt & Älphabet? #1/2", types=("track", "album"), market="from_token", limit=3)
    call(client.search, "a", types=("unknown",))
    call(client.search, "a", limit=51)


def _people(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    call(client.current_user)
    call(client.user, ITEMS["other_person"])
    call(client.playlists, ITEMS["other_person"], limit=2)
    for method in (client.current_user_top_artists, client.current_user_top_tracks):
        call(method, time_range="short_term", limit=3)
        call(method, time_range="unknown")
    for change in ("follow", "unfollow"):
        call(getattr(client, f"artists_{change}"), [ITEMS["artist"]])
        call(client.artists_is_following, [ITEMS["artist"], ITEMS["other_artist"]])
        call(getattr(client, f"users_{change}"), [ITEMS["other_person"]])
        call(client.users_is_following, [ITEMS["other_person"]])
    call(client.followed_artists, limit=1)


def _playlists(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    call(client.followed_playlists, limit=3)
    call(client.playlist, ITEMS["own_playlist"])
    call(client.playlist, ITEMS["own_playlist"], as_tracks=True)
    call(client.playlist, ITEMS["foreign_playlist"], fields="name,owner(id)")
    call(client.playlist_items, ITEMS["own_playlist"], limit=3, offset=4)
    call(client.playlist_items, ITEMS["foreign_playlist"])
    call(client.playlist_cover_image, ITEMS["own_playlist"])
    call(client.playlist_follow, ITEMS["unfollowed_playlist"], public=False)
    call(client.playlist_is_following, ITEMS["unfollowed_playlist"], [ITEMS["person"]])
    call(client.playlist_unfollow, ITEMS["unfollowed_playlist"])
    call(client.playlist_change_details, ITEMS["foreign_playlist"], name="Not mine")
    created = call(client.playlist_create, ITEMS["person"], "Påsk & co.", public=False, description="🎻")
    new = created.id if created else ITEMS["own_playlist"]
    call(client.playlist_add, new, [*TRACKS, f"spotify:episode:{ITEMS['episode']}"])
    call(client.playlist_add, new, TRACKS[:1], position=0)
    call(client.playlist_add, new, ["spotify:track:malformed"])
    call(client.playlist_reorder, new, 0, 3, range_length=2)
    call(client.playlist_items, new)
    call(client.playlist_remove, new, TRACKS[:1])
    call(client.playlist_replace, new, TRACKS)
    call(client.playlist_change_details, new, name="Renamed", public=True, description="Changed")
    call(client.playlist_cover_image_upload, new, ITEMS["cover"])
    call(client.playlist_cover_image, new)
    call(client.playlist_clear, new)
    call(client.playlist, new)
    call(client.playlist_unfollow, new)


def _library(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    for kind in ("album", "track", "episode", "show"):
        for change in ("add", "contains", "delete", "contains"):
            call(getattr(client, f"saved_{kind}s_{change}"), [ITEMS[kind]])
        call(getattr(client, f"saved_{kind}s"), limit=2)


def _player(recorder: Recorder, client: Client) -> None:
    call = recorder.call
    call(client.playback_devices)
    call(client.playback, market="SE")
    call(client.playback, tracks_only=True)
    call(client.playback_currently_playing)
    call(client.playback_start_context, f"spotify:album:{ITEMS['album']}", offset=1)
    call(client.playback)
    call(client.playback_start_tracks, [ITEMS["track"], ITEMS["other_track"]], position_ms=1000)
    call(client.playback_resume)
    for method, *args in (
        (client.playback_pause,),
        (client.playback_next,),
        (client.playback_previous,),
        (client.playback_seek, 5000),
        (client.playback_volume, 30),
        (client.playback_repeat, "context"),
        (client.playback_repeat, "unknown"),
        (client.playback_shuffle, True),
        (client.playback_queue_add, TRACKS[2]),
        (client.playback_transfer, ITEMS["other_device"]),
        (client.playback_transfer, "unknown"),
    ):
        call(method, *args)
    call(client.playback_pause, device_id="unknown")
    call(client.playback_queue)
    call(client.playback)


def _pages(recorder: Recorder, client: Client) -> None:
    """Follow `next` to the last page, and `previous` back to the first one."""
    call = recorder.call
    found = call(client.search, "a", types=("track",), limit=5, label="first page of search")
    first_pages = [
        found and found[0],
        call(client.followed_playlists, limit=2, label="first page of playlists"),
        call(client.saved_tracks, limit=3, label="first page of saved tracks"),
        call(client.playlist_items, ITEMS["own_playlist"], limit=4, label="first page of playlist items"),
        call(client.playback_recently_played, limit=5, label="first page of recently played"),
        call(client.followed_artists, limit=1, label="first page of followed artists"),
    ]
    for first_page in first_pages:
        last, page = None, first_page
        while page is not None:
            last, page = page, call(client.next, page)
        if isinstance(last, tekore.model.OffsetPaging):
            call(client.previous, last)

    def every(method: Any, page: Any) -> list[Any]:
        return list(method(page))

    for method in (client.all_pages, client.all_items):
        call(every, method, first_pages[2], label=method.__name__)
        recorder.called.add(method.__name__)


def _failures(recorder: Recorder, client: Client) -> None:
    """Meet each failure with a read, a poll, and a command."""
    stranger = Client("unknown", recorder)
    recorder.call(stranger.current_user, label="unknown token")
    stranger.close()
    client.playback_shuffle(False)  # Backline shares polls for a second, until the next command
    sandbox = recorder.target.sandbox
    for name, fault in FAILURES.items():
        sandbox.fault(on="api", times=None, **fault)
        recorder.call(client.track, ITEMS["track"], label=f"{name}, read")
        recorder.call(client.playback, label=f"{name}, poll")
        recorder.call(client.playback_queue_add, TRACKS[0], label=f"{name}, command")
        sandbox.clear_faults()
        if name != "rate limit":
            recorder.call(client.playback_queue, label=f"{name}, effect")
