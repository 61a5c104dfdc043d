"""Reads the accounts of your_spotify (https://github.com/Yooooomi/your_spotify) from its MongoDB."""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from app.imports.rows import ImportRow, RowReport, parse_row

_DEFAULT_DATABASE = "your_spotify"
_CONNECT_SECONDS = 10
_READ_SECONDS = 30
_MAX_SHOWN = 255  # longer ids are invalid
_MEMBERS = {"_id": 0, "spotifyId": 1, "refreshToken": 1}
_NOT_INSTALLED = "pymongo is not installed. Install it with: script/bootstrap --mongodb"


def read_your_spotify(url: str, owners: Mapping[str, str], now: datetime) -> Iterator[ImportRow | RowReport]:
    """Yield a row for each account. `owners` maps Spotify ids to usernames or email addresses here.

    your_spotify stores neither the time of the consent nor the scopes. Its usernames are display names, which
    anyone can register here, so they name no owner.

    Raises:
        click.ClickException: pymongo is not installed, or MongoDB cannot be read.
    """
    try:
        import bson
        import pymongo
    except ImportError:
        raise click.ClickException(_NOT_INSTALLED) from None
    logging.getLogger("pymongo").setLevel(logging.WARNING)  # below, it logs what it reads
    try:
        client: pymongo.MongoClient[Any] = pymongo.MongoClient(
            url,
            serverSelectionTimeoutMS=_CONNECT_SECONDS * 1000,
            socketTimeoutMS=_READ_SECONDS * 1000,
        )
        with client:
            database = client.get_default_database(_DEFAULT_DATABASE)
            for number, account in enumerate(database["users"].find({}, _MEMBERS).sort("_id", 1), start=1):
                yield _row(number, account, owners, now)
    except (pymongo.errors.PyMongoError, bson.errors.BSONError, ValueError, OSError) as error:
        # Its message may contain the password.
        raise click.ClickException(f"MongoDB cannot be read ({type(error).__name__}).") from None


def _row(
    number: int, account: Mapping[str, Any], owners: Mapping[str, str], now: datetime
) -> ImportRow | RowReport:
    spotify_id = account.get("spotifyId")
    name, owner = f"user {number}", None
    if isinstance(spotify_id, str):
        owner = owners.get(spotify_id)
        if spotify_id.isprintable() and len(spotify_id) <= _MAX_SHOWN:
            name += f" ({spotify_id})"
    members = {
        "spotify_id": spotify_id,
        "refresh_token": account.get("refreshToken"),
        "email" if owner is not None and "@" in owner else "username": owner,
    }
    return parse_row(name, members, now)
