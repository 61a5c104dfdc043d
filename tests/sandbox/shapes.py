"""JSON Schemas of responses.

They follow Spotify's OpenAPI document or, where real responses differ, the responses: `actions.disallows`,
`items` in playlists, null entries, 204s.
"""

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
ANY_TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ID: Schema = {"type": "string", "pattern": "^[0-9A-Za-z]{22}$"}
ADDRESS: Schema = {"type": "string", "pattern": "^http://127\\.0\\.0\\.1:[0-9]+/v1/"}
DATE: Schema = {"type": "string", "pattern": "^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d{3})?Z$"}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [NULL, schema]}


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def object_schema(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def linked(kind: str, id_shape: Schema = ID) -> dict[str, Schema]:
    return {
        "id": id_shape,
        "type": {"const": kind},
        "uri": {"type": "string", "pattern": f"^spotify:{kind}:."},
        "href": ADDRESS,
        "external_urls": object_schema({"spotify": TEXT}),
    }


def page(entry: Schema) -> Schema:
    return object_schema(
        {
            "href": ADDRESS,
            "limit": COUNT,
            "next": maybe(ADDRESS),
            "offset": COUNT,
            "previous": maybe(ADDRESS),
            "total": COUNT,
            "items": items(entry),
        }
    )


IMAGE = object_schema({"url": TEXT, "height": maybe(COUNT), "width": maybe(COUNT)})
FOLLOWERS = object_schema({"href": NULL, "total": COUNT})
COUNT_OF_ITEMS = object_schema({"href": ADDRESS, "total": COUNT})

ME_2026 = object_schema(
    {"display_name": maybe(TEXT), "images": items(IMAGE), **linked("user", TEXT)}, {"account_id": TEXT}
)
ME_BEFORE = object_schema(
    {"display_name": maybe(TEXT), "images": items(IMAGE), "followers": FOLLOWERS, **linked("user", TEXT)},
    {
        "account_id": TEXT,
        "country": TEXT,
        "email": TEXT,
        "product": {"enum": ["premium", "free", "open"]},
        "explicit_content": object_schema({"filter_enabled": FLAG, "filter_locked": FLAG}),
    },
)
PUBLIC_USER = object_schema(
    {"display_name": maybe(TEXT), "images": items(IMAGE), "followers": FOLLOWERS, **linked("user", TEXT)}
)
OWNER = object_schema({"display_name": maybe(TEXT), **linked("user", TEXT)})

SIMPLE_ARTIST = object_schema({"name": TEXT, **linked("artist")})
ARTIST = object_schema({"name": TEXT, "genres": items(TEXT), "images": items(IMAGE), **linked("artist")})
_SIMPLE_ALBUM = {
    "album_type": {"enum": ["album", "single", "compilation"]},
    "artists": items(SIMPLE_ARTIST),
    "images": items(IMAGE),
    "is_playable": FLAG,
    "name": TEXT,
    "release_date": {"type": "string", "pattern": "^\\d{4}(-\\d\\d(-\\d\\d)?)?$"},
    "release_date_precision": {"enum": ["year", "month", "day"]},
    "total_tracks": COUNT,
    **linked("album"),
}
SIMPLE_ALBUM = object_schema(_SIMPLE_ALBUM)
_SIMPLE_TRACK = {
    "artists": items(SIMPLE_ARTIST),
    "disc_number": COUNT,
    "duration_ms": COUNT,
    "explicit": FLAG,
    "is_local": FLAG,
    "is_playable": FLAG,
    "name": TEXT,
    "preview_url": NULL,
    "track_number": COUNT,
    **linked("track"),
}
SIMPLE_TRACK = object_schema(_SIMPLE_TRACK)
TRACK = object_schema(
    {"album": SIMPLE_ALBUM, "external_ids": object_schema({"isrc": TEXT}), **_SIMPLE_TRACK},
    {"episode": FLAG, "track": FLAG},
)
ALBUM = object_schema(
    {
        **_SIMPLE_ALBUM,
        "copyrights": items(object_schema({"text": TEXT, "type": TEXT})),
        "external_ids": object_schema({"upc": TEXT}),
        "genres": {"const": []},
        "tracks": page(SIMPLE_TRACK),
    }
)

_SERIES = {
    "copyrights": {"type": "array"},
    "description": TEXT,
    "explicit": FLAG,
    "html_description": TEXT,
    "images": items(IMAGE),
    "languages": items(TEXT),
    "media_type": TEXT,
    "name": TEXT,
}
# New development-mode apps do not get these.
_SERIES_BEFORE = {"available_markets": items(TEXT), "publisher": TEXT}
_SIMPLE_SHOW = {**_SERIES, "is_externally_hosted": FLAG, "total_episodes": COUNT, **linked("show")}
SIMPLE_SHOW = object_schema(_SIMPLE_SHOW, _SERIES_BEFORE)
_PEOPLE = items(object_schema({"name": TEXT}))
_SIMPLE_AUDIOBOOK = {
    **_SERIES,
    "authors": _PEOPLE,
    "edition": TEXT,
    "narrators": _PEOPLE,
    "total_chapters": COUNT,
    **linked("audiobook"),
    "uri": {"type": "string", "pattern": "^spotify:show:."},
}
SIMPLE_AUDIOBOOK = object_schema(_SIMPLE_AUDIOBOOK, _SERIES_BEFORE)
_PART = {
    "audio_preview_url": NULL,
    "description": TEXT,
    "duration_ms": COUNT,
    "explicit": FLAG,
    "html_description": TEXT,
    "images": items(IMAGE),
    "is_playable": FLAG,
    "languages": items(TEXT),
    "name": TEXT,
    "release_date": TEXT,
    "release_date_precision": {"const": "day"},
}
_RESUME = {"resume_point": object_schema({"fully_played": FLAG, "resume_position_ms": COUNT})}
_EPISODE = {**_PART, "is_externally_hosted": FLAG, "language": TEXT, **linked("episode")}
_CHAPTER = {
    **_PART,
    "chapter_number": COUNT,
    **linked("chapter"),
    "type": {"const": "episode"},
    "uri": {"type": "string", "pattern": "^spotify:episode:."},
}
_MARKETS = {"available_markets": items(TEXT)}
SIMPLE_EPISODE = object_schema(_EPISODE, _RESUME)
SIMPLE_CHAPTER = object_schema(_CHAPTER, {**_RESUME, **_MARKETS})
EPISODE = object_schema({**_EPISODE, "show": SIMPLE_SHOW}, _RESUME)
CHAPTER = object_schema({**_CHAPTER, "audiobook": SIMPLE_AUDIOBOOK}, {**_RESUME, **_MARKETS})
SHOW = object_schema({**_SIMPLE_SHOW, "episodes": page(SIMPLE_EPISODE)}, _SERIES_BEFORE)
AUDIOBOOK = object_schema({**_SIMPLE_AUDIOBOOK, "chapters": page(SIMPLE_CHAPTER)}, _SERIES_BEFORE)

_NOTHING: dict[str, Schema] = {"id": NULL, "href": NULL, "external_urls": {"const": {}}}
LOCAL_TRACK = object_schema(
    {
        **_NOTHING,
        "album": object_schema(
            {
                **_NOTHING,
                "album_type": NULL,
                "artists": {"const": []},
                "images": {"const": []},
                "name": TEXT,
                "release_date": NULL,
                "release_date_precision": NULL,
                "type": {"const": "album"},
                "uri": NULL,
            }
        ),
        "artists": items(object_schema({**_NOTHING, "name": TEXT, "type": {"const": "artist"}, "uri": NULL})),
        "disc_number": {"const": 0},
        "duration_ms": COUNT,
        "explicit": {"const": False},
        "external_ids": {"const": {}},
        "is_local": {"const": True},
        "name": TEXT,
        "preview_url": NULL,
        "track_number": {"const": 0},
        "type": {"const": "track"},
        "uri": {"type": "string", "pattern": "^spotify:local:"},
    }
)
_PLAYLIST = {
    "collaborative": FLAG,
    "description": maybe(ANY_TEXT),
    "images": maybe(items(IMAGE)),
    "name": TEXT,
    "owner": OWNER,
    "primary_color": NULL,
    "public": maybe(FLAG),
    "snapshot_id": TEXT,
    **linked("playlist"),
}
SIMPLE_PLAYLIST = object_schema({**_PLAYLIST, "items": COUNT_OF_ITEMS})
PLAYLIST_ITEM = object_schema(
    {
        "added_at": maybe(DATE),
        "added_by": maybe(object_schema(linked("user", TEXT))),
        "is_local": FLAG,
        "primary_color": NULL,
        "item": maybe(TRACK),
        "video_thumbnail": object_schema({"url": NULL}),
    }
)
OWN_PLAYLIST = object_schema({**_PLAYLIST, "followers": FOLLOWERS, "items": page(PLAYLIST_ITEM)})
FOREIGN_PLAYLIST = object_schema({**_PLAYLIST, "followers": FOLLOWERS})
SNAPSHOT = object_schema({"snapshot_id": TEXT})

DEVICE = object_schema(
    {
        "id": maybe(TEXT),
        "is_active": FLAG,
        "is_private_session": FLAG,
        "is_restricted": FLAG,
        "name": TEXT,
        "supports_volume": FLAG,
        "type": TEXT,
        "volume_percent": maybe({"type": "integer", "minimum": 0, "maximum": 100}),
    }
)
DEVICES = object_schema({"devices": items(DEVICE)})
CONTEXT = object_schema(
    {"type": TEXT, "href": ADDRESS, "external_urls": object_schema({"spotify": TEXT}), "uri": TEXT}
)
_PLAYING = {
    "timestamp": COUNT,
    "context": maybe(CONTEXT),
    "progress_ms": maybe(COUNT),
    "item": maybe(TRACK),
    "currently_playing_type": {"enum": ["track", "episode", "ad", "unknown"]},
    "actions": object_schema({"disallows": {"type": "object", "additionalProperties": {"const": True}}}),
    "is_playing": FLAG,
}
CURRENTLY_PLAYING = object_schema(_PLAYING)
PLAYER = object_schema(
    {
        "device": DEVICE,
        "shuffle_state": FLAG,
        "smart_shuffle": FLAG,
        "repeat_state": {"enum": ["off", "track", "context"]},
        **_PLAYING,
    }
)
QUEUE = object_schema({"currently_playing": maybe(TRACK), "queue": items(TRACK)})
RECENTLY_PLAYED = object_schema(
    {
        "items": items(object_schema({"track": TRACK, "played_at": DATE, "context": maybe(CONTEXT)})),
        "next": maybe(ADDRESS),
        "cursors": maybe(object_schema({"after": TEXT, "before": TEXT})),
        "limit": COUNT,
        "href": ADDRESS,
    }
)
FOLLOWED_ARTISTS = object_schema(
    {
        "href": ADDRESS,
        "limit": COUNT,
        "next": maybe(ADDRESS),
        "cursors": object_schema({"after": maybe(ID)}),
        "total": COUNT,
        "items": items(
            object_schema(
                {
                    "name": TEXT,
                    "genres": items(TEXT),
                    "images": items(IMAGE),
                    "followers": FOLLOWERS,
                    "popularity": COUNT,
                    **linked("artist"),
                }
            )
        ),
    }
)
CATEGORY = object_schema({"href": ADDRESS, "icons": items(IMAGE), "id": TEXT, "name": TEXT})
SAVED_TRACKS = page(object_schema({"added_at": DATE, "track": TRACK}))
SEARCH = object_schema(
    {
        "albums": page(SIMPLE_ALBUM),
        "artists": page(ARTIST),
        "audiobooks": page(SIMPLE_AUDIOBOOK),
        "episodes": page(SIMPLE_EPISODE),
        "playlists": page(maybe(SIMPLE_PLAYLIST)),
        "shows": page(SIMPLE_SHOW),
        "tracks": page(TRACK),
    }
)

API_ERROR = object_schema(
    {"error": object_schema({"status": {"type": "integer"}, "message": TEXT}, {"reason": TEXT})},
)
OAUTH_ERROR = object_schema({"error": TEXT}, {"error_description": TEXT})
_TOKEN: dict[str, Schema] = {
    "access_token": {"type": "string", "pattern": "^BQ[0-9A-Za-z_-]{100,}$"},
    "token_type": {"const": "Bearer"},
    "expires_in": {"type": "integer", "minimum": 1},
}
_REFRESH_TOKEN: dict[str, Schema] = {
    "refresh_token": {"type": "string", "pattern": "^AQ[0-9A-Za-z_-]{100,}$"}
}
CODE_RESPONSE = object_schema({**_TOKEN, **_REFRESH_TOKEN}, {"scope": TEXT})
REFRESH_RESPONSE = object_schema(_TOKEN, {"scope": TEXT, **_REFRESH_TOKEN})


def check(value: object, schema: Schema) -> None:
    """Fail with the first mismatch and its path."""
    for error in Draft202012Validator(schema).iter_errors(value):
        raise AssertionError(f"{error.json_path}: {error.message[:300]}")
