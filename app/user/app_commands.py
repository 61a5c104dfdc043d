"""`flask apps`: commands for operators to manage people's own applications at Spotify."""

import math
import sys

import click
import sqlalchemy as sa
from flask.cli import AppGroup

from app.infra.cli_command import Command, read_line, text
from app.infra.clock import rfc3339
from app.infra.database import reading
from app.models import AppState, SpotifyApp, User
from app.services import services
from app.spotify.app_registration.schemas import NewSpotifyApp
from app.user.commands import UsersCommand, find_user, user_argument

apps = AppGroup(
    "apps", help="Manage people's own Spotify applications. USER is a username, an email address, or an id."
)


@apps.command("list", cls=Command)
@click.option("--paused", is_flag=True, help="Only those that Spotify rejects, limits, or does not serve.")
def list_apps(paused: bool) -> None:
    """List them: owner, client ID, whether they have a secret, and whether they work.

    Shows why an application is paused, since when, and until when; and for how long Spotify's Web API
    rejects its calls.
    """
    found = sa.select(User.id, User.username, SpotifyApp).join(SpotifyApp, SpotifyApp.owner_id == User.id)
    with reading() as db:
        for user_id, username, app in db.execute(found.order_by(SpotifyApp.id)):
            wait = services().web_api.retry_after(app.client_id)
            if paused and app.state == AppState.ACTIVE and not wait:
                continue
            kind = "public" if app.client_secret is None else "secret"
            since = f" since {rfc3339(app.failing_since)}" if app.failing_since is not None else ""
            until = f" until {rfc3339(app.paused_until)}" if app.paused_until is not None else ""
            limited = f", Web API: rate limited for {math.ceil(wait)} s" if wait else ""
            click.echo(
                f"{user_id:<8} {username:<24} {app.client_id:<34} {kind}  {app.state}{since}{until}{limited}"
            )


@apps.command("add", cls=UsersCommand)
@user_argument
@click.argument("client_id", metavar="CLIENT_ID", callback=text)
@click.option("--public", is_flag=True, help="The application has no secret, and relies on PKCE.")
def add(user: str, client_id: str, public: bool) -> None:
    """Register an application for a user, or replace it.

    You are prompted for the client secret; otherwise, the first line of standard input has it. A connection
    that was made with another client ID ends.
    """
    owner = _find_owner(user)
    requested = NewSpotifyApp().load(
        {"client_id": client_id, "client_secret": None if public else _read_secret()}
    )
    services().app_registration.register(owner, requested["client_id"], requested["client_secret"])
    click.echo(f"User {owner.id} ({owner.username}) now connects with the application {client_id}.")


@apps.command("remove", cls=UsersCommand)
@user_argument
def remove(user: str) -> None:
    """Remove a user's application. The connection made with it ends."""
    owner = _find_owner(user)
    if services().app_registration.remove(owner):
        click.echo(f"Removed the application of user {owner.id} ({owner.username}).")
    else:
        click.echo(f"User {owner.id} ({owner.username}) has no application of their own.")


def _find_owner(name: str) -> User:
    """Return a user whose application can change.

    Raises:
        click.ClickException: There is none, or two; or the account is disabled.
    """
    owner = find_user(name)
    if owner.disabled:
        raise click.ClickException(
            f"User {owner.id} ({owner.username}) is disabled. `flask users enable` enables the account."
        )
    return owner


def _read_secret() -> str:
    """Read a secret that must not be in the arguments, which other users of this machine can see."""
    if sys.stdin is not None and sys.stdin.isatty():
        secret: str = click.prompt("Client secret", hide_input=True)
        return secret.strip()
    return read_line()
