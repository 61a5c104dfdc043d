"""Objects in responses: shows, episodes, audiobooks, and chapters."""

from __future__ import annotations

from typing import Any

from sandbox import items
from sandbox.api.blueprint import granted
from sandbox.api.members import availability, covers, former, links
from sandbox.api.paging import first_page
from sandbox.catalog import MARKETS
from sandbox.spoken import Part, Series

_SIZES = (640, 300, 64)


def _series(series: Series) -> dict[str, Any]:
    about = f"{series.name}, by {series.author}"
    return {
        "copyrights": [],
        "description": about,
        "explicit": False,
        "html_description": f"<p>{about}</p>",
        "images": covers(series.kind, series.id, _SIZES),
        "languages": ["en"],
        "media_type": "audio",
        "name": series.name,
        **links(series.kind, series.id),
        **former(available_markets=MARKETS, publisher=series.author),
    }


def simple_show(show: Series) -> dict[str, Any]:
    """Return a simplified show."""
    return {**_series(show), "is_externally_hosted": False, "total_episodes": len(show.part_ids)}


def full_show(show: Series) -> dict[str, Any]:
    """Return a full show with its episodes."""
    return {**simple_show(show), "episodes": first_page(episodes_of(show), f"shows/{show.id}/episodes")}


def episodes_of(show: Series) -> list[dict[str, Any]]:
    """Return a show's episodes, simplified."""
    return [simple_episode(items.episode(item_id)) for item_id in show.part_ids]


def simple_audiobook(book: Series) -> dict[str, Any]:
    """Return a simplified audiobook. Its URI is one of a show, as on Spotify."""
    return {
        **_series(book),
        "uri": f"spotify:show:{book.id}",
        "authors": [{"name": book.author}],
        "edition": "Unabridged",
        "narrators": [{"name": "Somebody Else"}],
        "total_chapters": len(book.part_ids),
    }


def full_audiobook(book: Series) -> dict[str, Any]:
    """Return a full audiobook with its chapters."""
    page = first_page(chapters_of(book), f"audiobooks/{book.id}/chapters")
    return {**simple_audiobook(book), "chapters": page}


def chapters_of(book: Series) -> list[dict[str, Any]]:
    """Return an audiobook's chapters, simplified."""
    return [simple_chapter(items.chapter(item_id)) for item_id in book.part_ids]


def _part(part: Part) -> dict[str, Any]:
    resume_point = {"resume_point": {"fully_played": False, "resume_position_ms": 0}}
    return {
        "audio_preview_url": None,
        "description": part.name,
        "duration_ms": part.duration_ms,
        "explicit": False,
        "html_description": f"<p>{part.name}</p>",
        "languages": ["en"],
        "name": part.name,
        "release_date": part.released,
        "release_date_precision": "day",
        **availability(),
        **(resume_point if granted("user-read-playback-position") else {}),
    }


def simple_episode(episode: Part) -> dict[str, Any]:
    """Return a simplified episode. Episodes have no list of markets."""
    members = {"is_playable": True} | _part(episode) | links("episode", episode.id)
    members.pop("available_markets", None)
    images = covers("show", episode.series_id, _SIZES)
    return {**members, "images": images, "is_externally_hosted": False, "language": "en"}


def full_episode(episode: Part) -> dict[str, Any]:
    """Return a full episode with its show."""
    return {**simple_episode(episode), "show": simple_show(items.show(episode.series_id))}


def episode_as_track(episode: Part) -> dict[str, Any]:
    """Return an episode in the shape of a track, for apps that know only those."""
    show = items.show(episode.series_id)
    album = {
        "album_type": "compilation",
        "artists": [],
        "images": covers("show", show.id, _SIZES),
        "name": show.name,
        "release_date": episode.released,
        "release_date_precision": "day",
        "total_tracks": len(show.part_ids),
        **links("show", show.id),
    }
    return {
        "album": album,
        "artists": [{"name": show.author, **links("show", show.id)}],
        "disc_number": 0,
        "duration_ms": episode.duration_ms,
        "explicit": False,
        "external_ids": {},
        "is_local": False,
        "name": episode.name,
        "preview_url": None,
        "track_number": episode.number,
        **availability(),
        **links("episode", episode.id),
        **former(popularity=0),
    }


def simple_chapter(chapter: Part) -> dict[str, Any]:
    """Return a simplified chapter. Its type and URI are those of an episode, as on Spotify."""
    episode = {"type": "episode", "uri": f"spotify:episode:{chapter.id}"}
    members = {"is_playable": True} | _part(chapter) | links("chapter", chapter.id) | episode
    images = covers("audiobook", chapter.series_id, _SIZES)
    return {**members, "chapter_number": chapter.number, "images": images}


def full_chapter(chapter: Part) -> dict[str, Any]:
    """Return a full chapter with its audiobook."""
    return {**simple_chapter(chapter), "audiobook": simple_audiobook(items.audiobook(chapter.series_id))}
