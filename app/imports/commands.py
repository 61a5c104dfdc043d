"""`flask import`: commands that move connections in from other services."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import BinaryIO

import click
from flask.cli import AppGroup

from app.imports.importer import Importer
from app.imports.rows import ImportRow, RowReport, RowResult, read_json_lines
from app.imports.your_spotify import read_your_spotify
from app.infra import database
from app.infra.cli_command import Command, InputFile, read_line
from app.services import services

imports = AppGroup("import", help="Move connections in from other services, without a new consent.")

_dry_run = click.option("--dry-run", is_flag=True, help="Report what would be imported, and change nothing.")
_PROGRESS_ROWS = 1000


@imports.command("links", cls=Command)
@click.argument("file", type=InputFile())
@_dry_run
def links(file: BinaryIO, dry_run: bool) -> None:
    """Import refresh tokens from FILE, or from standard input if it is -.

    Each line is a JSON object with "username", "email", or "spotify_id", with "refresh_token", and possibly
    with "scope" and "authorized_at". Prints one line for each row; progress goes to standard error. A live
    connection is left alone, so the command can be stopped and run again. Exits 1 if a row is invalid.
    """
    _import(read_json_lines(file, database.read_db_now()), dry_run=dry_run)


def _owners(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if not all(spotify_id and user for spotify_id, _, user in pairs):
        raise click.BadParameter("must look like SPOTIFY_ID=USER")
    return {spotify_id: user for spotify_id, _, user in pairs}


def _mongodb_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    url = read_line() if value == "-" else value
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise click.BadParameter("must look like mongodb://127.0.0.1:27017/your_spotify")
    return url


@imports.command("your-spotify", cls=Command)
@click.argument("url", callback=_mongodb_url)
@click.option(
    "--owner",
    "owners",
    metavar="SPOTIFY_ID=USER",
    multiple=True,
    callback=_owners,
    help="The username or email address of the account here that gets a connection. Can be repeated.",
)
@_dry_run
def your_spotify(url: str, owners: dict[str, str], dry_run: bool) -> None:
    """Import the accounts of your_spotify from its MongoDB at URL.

    If URL is -, it is read from standard input, which keeps a password out of the shell history. Prints the
    same as `flask import links`.
    """
    _import(read_your_spotify(url, owners, database.read_db_now()), dry_run=dry_run)


def _import(rows: Iterable[ImportRow | RowReport], *, dry_run: bool) -> None:
    needed = services()
    config = needed.config
    if needed.applications.deployment is None:
        raise click.ClickException("Set SPOTIFY_CLIENT_ID to the one that the refresh tokens were issued to.")
    importer = Importer(needed.token_cipher, needed.response_cache, config.refresh_rate)
    counts = importer.run(rows, _reporter(), dry_run=dry_run)
    imported, skipped, invalid = (counts[result] for result in RowResult)
    verb = "would be imported" if dry_run else "imported"
    click.echo(f"{imported} {verb}, {skipped} skipped, {invalid} invalid")
    if invalid:
        sys.exit(1)


def _reporter() -> Callable[[list[RowReport]], None]:
    """Return a function that prints reports, and from time to time the progress."""
    counts: Counter[RowResult] = Counter()

    def report(reports: list[RowReport]) -> None:
        before = counts.total()
        counts.update(found.result for found in reports)
        for found in reports:
            click.echo(f"{found.row}: {found.result}{f', {found.reason}' if found.reason else ''}")
        if counts.total() // _PROGRESS_ROWS > before // _PROGRESS_ROWS:
            click.echo(f"{counts.total()} rows done, {counts[RowResult.IMPORTED]} imported", err=True)

    return report
