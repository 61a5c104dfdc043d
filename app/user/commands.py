"""`flask users`: the operator's commands for accounts."""

import logging
import sys
from collections.abc import Callable

import click
import marshmallow as ma
import redis
import sqlalchemy as sa
from flask.cli import AppGroup
from sqlalchemy.orm import Session

from app.auth import lookup
from app.auth.registration import create_account
from app.auth.schemas import EmailOnly, Registration
from app.errors import BacklineError
from app.infra.cli_command import Command, text
from app.infra.clock import rfc3339, utc_now
from app.infra.database import reading, run_in_transaction
from app.models import User, normalization
from app.services import services
from app.spotify import connections
from app.web import sessions
from app.web.problems import problem_type

log = logging.getLogger(__name__)

users = AppGroup("users", help="Accounts. USER is a username, an email address, or an id.")


class _UsersCommand(Command):
    """A command that prints what is wrong with its arguments in one line each, and exits with 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ma.ValidationError as error:
            lines = [f"{field}: {' '.join(found)}" for field, found in dict(error.messages_dict).items()]
        except BacklineError as error:
            lines = [problem_type(type(error)).title]
        for line in lines:
            click.echo(line, err=True)
        sys.exit(1)


_user = click.argument("user", metavar="USER", callback=text)


@users.command("create", cls=_UsersCommand)
@click.argument("username", callback=text)
@click.argument("email", callback=text)
@click.password_option(
    callback=text, help="Prompted for if omitted, which keeps it out of the shell history."
)
def create(username: str, email: str, password: str) -> None:
    """Create an account."""
    new = Registration().load({"username": username, "email": email, "password": password})
    user = create_account(services().passwords, **new)
    click.echo(f"created user {user.id}: {user.username} <{user.email}>")


@users.command("show", cls=_UsersCommand)
@_user
def show(user: str) -> None:
    """Show an account, without secrets."""
    found = _find(user)
    link = connections.owned_by(found.id)
    rows = {
        "id": found.id,
        "username": found.username,
        "email": _email(found),
        "mail goes to": found.mail_to,
        "pending email": found.pending_email or "none",
        "created": rfc3339(found.created_at),
        "disabled": rfc3339(found.disabled_at) if found.disabled_at is not None else "no",
        "Spotify": "not connected" if link is None else f"{link.spotify_id} ({link.token.state})",
    }
    for name, value in rows.items():
        click.echo(f"{name:<16}{value}")


@users.command("set-email", cls=_UsersCommand)
@_user
@click.argument("email", callback=text)
def set_email(user: str, email: str) -> None:
    """Replace the email address of a person who has lost the old mailbox.

    The new address has to be verified: a link is mailed to it. If the old one was verified, it gets a
    notice. Links that were mailed earlier no longer work.
    """
    entered = EmailOnly().load({"email": email})["email"]
    changed = _change(_find(user), lambda db, row: services().email_changes.set_by_operator(db, row, entered))
    log.info("email_changed", extra={"account": changed.id})
    click.echo(f"user {changed.id} ({changed.username}) now has the address {_email(changed)}")
    if changed.email_verified:
        return
    if services().mailer.is_configured:
        services().notifications.send_verification(
            changed
        )  # not limited like the requests of strangers, and so without Redis
    else:
        click.echo("No link to verify it was mailed: MAIL_URL is not set.", err=True)


@users.command("end-sessions", cls=_UsersCommand)
@_user
def end_sessions(user: str) -> None:
    """Sign the person out everywhere."""
    changed = _change(_find(user), lambda _, row: row.end_sessions())
    ended = _delete_sessions(changed)
    log.info("sessions_ended", extra={"account": changed.id, "ended": ended})
    count = "all" if ended is None else ended
    click.echo(f"ended {count} sessions of user {changed.id} ({changed.username})")


@users.command("disable", cls=_UsersCommand)
@_user
def disable(user: str) -> None:
    """End all sessions; refuse sign-in and password resets until `flask users enable`.

    The person sees the same message as for a wrong password. Nothing is deleted.
    """

    def unit(_: Session, row: User) -> None:
        row.disabled_at = row.disabled_at or utc_now()
        row.end_sessions()

    changed = _change(_find(user), unit)
    _delete_sessions(changed)
    log.info("account_disabled", extra={"account": changed.id})
    click.echo(f"disabled user {changed.id} ({changed.username})")


@users.command("enable", cls=_UsersCommand)
@_user
def enable(user: str) -> None:
    """Let a disabled account sign in again."""

    def unit(_: Session, row: User) -> None:
        row.disabled_at = None

    changed = _change(_find(user), unit)
    log.info("account_enabled", extra={"account": changed.id})
    click.echo(f"enabled user {changed.id} ({changed.username})")


def _delete_sessions(user: User) -> int | None:
    """Delete an account's sessions, which its new epoch has already ended. Returns how many there were.

    None if Redis is away: they are not needed for the command to have its effect.
    """
    try:
        return sessions.end_all(user.id, connections.grant_of(user.id))
    except redis.RedisError as error:
        log.warning("sessions_unavailable", extra={"reason": type(error).__name__})
        return None


def _email(user: User) -> str:
    return f"{user.email} ({'verified' if user.email_verified else 'not verified'})"


def _find(called: str) -> User:
    with reading() as db:
        found = {user.id: user for user in (lookup.by_login(db, called), _by_id(db, called)) if user}
    if not found:
        raise click.ClickException(
            f"There is no user {called!r}. Give a username, an email address, or an id."
        )
    if len(found) > 1:
        raise click.ClickException(
            f"{called!r} is the username of one user and the id of another. Give the email address."
        )
    return next(iter(found.values()))


def _by_id(db: Session, called: str) -> User | None:
    digits = normalization.normal_form(called)
    is_id = digits.isdecimal() and len(digits) < 10  # what an INTEGER column can hold
    return db.get(User, int(digits)) if is_id else None


def _change(user: User, change: Callable[[Session, User], object]) -> User:
    """Change an account's row, locked, in a transaction."""

    def unit(db: Session) -> User:
        row = db.scalar(sa.select(User).where(User.id == user.id).with_for_update())
        if row is None:
            raise click.ClickException("The user has just been deleted.")
        change(db, row)
        db.flush()
        return row

    return run_in_transaction(unit)
