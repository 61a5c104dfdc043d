"""Reads the accounts of your_spotify (https://github.com/Yooooomi/your_spotify) from its MongoDB."""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from app.imports.rows import ImportRow, RowReport, parse_row

_DEFAULT_DATABASE = "your_spotify"
_CONNECT_SECONDS = 10
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
        import pymongo
    except ImportError:
        raise click.ClickException(_NOT_INSTALLED) from None
    logging.getLogger("pymongo").setLevel(logging.WARNING)  # below, it logs what it reads
    try:
        timeout = _CONNECT_SECONDS * 1000
        client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, serverSelectionTimeoutMS=timeout)
        with client:
            database = client.get_default_database(_DEFAULT_DATABASE)
            for number, account in enumerate(database["users"].find({}, _MEMBERS).sort("_id", 1), start=1):
                yield _row(number, account, owners, now)
    except (pymongo.errors.PyMongoError, ValueError) as error:
        # Its message may contain the password.
        raise click.ClickException(f"MongoDB cannot be read ({type(error).__name__}).") from None


def _row(
    number: int, account: Mapping[str, Any], owners: Mapping[str, str], now: datetime
) -> ImportRow | RowReport:
    spotify_id = account.get("spotifyId")
    name = f"user {number} ({spotify_id})" if str(spotify_id).isprintable() else f"user {number}"
    owner = owners.get(spotify_id) if isinstance(spotify_id, str) else None
    members = {
        "spotify_id": spotify_id,
        "refresh_token": account.get("refreshToken"),
        "email" if owner is not None and "@" in owner else "username": owner,
    }
    return parse_row(name, members, now)
