"""`flask users`: commands for operators to manage accounts."""

import logging
import sys
from collections.abc import Callable

import click
import marshmallow as ma
import redis
import sqlalchemy as sa
from flask.cli import AppGroup
from sqlalchemy.orm import Session

from app.auth import lookup, personal_access_tokens
from app.auth.registration import create_account
from app.auth.schemas import EmailOnly, Registration
from app.errors import BacklineError
from app.infra.cli_command import Command, text
from app.infra.clock import rfc3339, utc_now
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import User, normalization
from app.models.user import has_email
from app.services import services
from app.spotify import connections
from app.web import sessions
from app.web.problems import problem_type

log = logging.getLogger(__name__)

users = AppGroup("users", help="Manage accounts. USER is a username, an email address, or an id.")


class UsersCommand(Command):
    """A command that prints one line for each invalid argument, and exits with 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ma.ValidationError as error:
            lines = [f"{field}: {' '.join(found)}" for field, found in dict(error.messages_dict).items()]
        except BacklineError as error:
            invalid: dict[str, list[str]] = error.members.get("errors", {})  # type: ignore[assignment]
            lines = [problem_type(type(error)).title]
            lines += [f"{field}: {' '.join(found)}" for field, found in invalid.items()]
        for line in lines:
            click.echo(line, err=True)
        sys.exit(1)


user_argument = click.argument("user", metavar="USER", callback=text)


@users.command("create", cls=UsersCommand)
@click.argument("username", callback=text)
@click.argument("email", callback=text)
@click.password_option(
    callback=text, help="If omitted, you are prompted for it, which keeps it out of the shell history."
)
def create(username: str, email: str, password: str) -> None:
    """Create an account."""
    new = Registration().load({"username": username, "email": email, "password": password})
    user = create_account(services().passwords, **new)
    click.echo(f"Created user {user.id}: {user.username} <{user.email}>")


@users.command("show", cls=UsersCommand)
@user_argument
def show(user: str) -> None:
    """Show an account, without its secrets."""
    found = find_user(user)
    connection = connections.owned_by(found.id)
    rows = {
        "id": found.id,
        "username": found.username,
        "email": _email(found),
        "email sent to": found.mail_to if has_email(found.email) else "none",
        "pending email": found.pending_email or "none",
        "created": rfc3339(found.created_at),
        "disabled": rfc3339(found.disabled_at) if found.disabled_at is not None else "no",
        "Spotify": f"{connection.spotify_id} ({connection.token.state})" if connection else "not connected",
    }
    for name, value in rows.items():
        click.echo(f"{name:<16}{value}")


@users.command("set-email", cls=UsersCommand)
@user_argument
@click.argument("email", callback=text)
def set_email(user: str, email: str) -> None:
    """Replace the email address of a user who has lost access to the old mailbox.

    The new address gets a link that verifies it. The old address gets a notice, if it was verified. Links in
    earlier emails stop working, and Spotify signs no one in to the account until the user connects it again.
    Sessions and the password stay valid.
    """
    entered = EmailOnly().load({"email": email})["email"]
    changed = _change(
        find_user(user), lambda db, row: services().email_changes.set_by_operator(db, row, entered)
    )
    log.info("email_changed", extra={"account": changed.id})
    click.echo(f"User {changed.id} ({changed.username}) now has the email address {_email(changed)}.")
    if changed.email_verified:
        return
    if services().mailer.is_configured:
        # The limit on emails does not apply to operators, so the command works without Redis.
        services().notifications.send_verification(changed)
    else:
        click.echo("No verification email was sent, because MAIL_URL is not set.", err=True)


@users.command("end-sessions", cls=UsersCommand)
@user_argument
def end_sessions(user: str) -> None:
    """Sign a user out everywhere, and revoke their personal access tokens."""
    changed = _change(find_user(user), _end_access)
    ended = _delete_sessions(changed)
    log.info("sessions_ended", extra={"account": changed.id, "ended": ended})
    count = "all sessions" if ended is None else "1 session" if ended == 1 else f"{ended} sessions"
    click.echo(f"Ended {count} of user {changed.id} ({changed.username}).")


@users.command("disable", cls=UsersCommand)
@user_argument
def disable(user: str) -> None:
    """Disable an account, end its sessions, and revoke its personal access tokens.

    Until you run `flask users enable`, the user cannot sign in or reset the password. Signing in fails with
    the message for a wrong password. Nothing is deleted.
    """

    def work(db: Session, row: User) -> None:
        row.disabled_at = row.disabled_at or utc_now()
        _end_access(db, row)

    changed = _change(find_user(user), work)
    _delete_sessions(changed)
    log.info("account_disabled", extra={"account": changed.id})
    click.echo(f"Disabled user {changed.id} ({changed.username}).")


@users.command("enable", cls=UsersCommand)
@user_argument
def enable(user: str) -> None:
    """Enable a disabled account."""

    def work(_: Session, row: User) -> None:
        row.disabled_at = None

    changed = _change(find_user(user), work)
    log.info("account_enabled", extra={"account": changed.id})
    click.echo(f"Enabled user {changed.id} ({changed.username}).")


def _end_access(db: Session, user: User) -> None:
    """End the sessions of a user whose row is locked, and revoke their tokens."""
    user.end_sessions()
    # As in `_change`: the command works without Redis.
    personal_access_tokens.revoke_all(db, user.id, best_effort=True)


def _delete_sessions(user: User) -> int | None:
    """Delete the user's sessions. Returns how many there were, or None if Redis is down.

    The account's new epoch ends them too, so the command does not depend on Redis. But servers may have
    remembered the old one.
    """
    try:
        return sessions.end_all(user.id, connections.grant_of(user.id))
    except redis.RedisError as error:
        log.warning("sessions_unavailable", extra={"reason": type(error).__name__})
        click.echo("Redis is not available. Servers may accept the sessions for another minute.", err=True)
        return None


def _email(user: User) -> str:
    if not has_email(user.email):
        return "none"
    return f"{user.email} ({'verified' if user.email_verified else 'not verified'})"


def find_user(name: str) -> User:
    """Return the user with this username, email address, or id.

    Raises:
        click.ClickException: There is none, or two.
    """
    with reading() as db:
        found = {user.id: user for user in (lookup.by_login(db, name), _by_id(db, name)) if user}
    if not found:
        raise click.ClickException(
            f"There is no user {name!r}. Enter a username, an email address, or an id."
        )
    if len(found) > 1:
        raise click.ClickException(
            f"{name!r} is the username of one user and the id of another. Enter the email address."
        )
    return next(iter(found.values()))


def _by_id(db: Session, name: str) -> User | None:
    digits = normalization.normal_form(name)
    is_id = digits.isdecimal() and len(digits) < 10  # fits an INTEGER column
    return db.get(User, int(digits)) if is_id else None


def _change(user: User, change: Callable[[Session, User], object]) -> User:
    """Change a user's row in a transaction that locks it."""

    def work(db: Session) -> User:
        row = db.scalar(sa.select(User).where(User.id == user.id).with_for_update())
        if row is None:
            raise click.ClickException("The user was just deleted.")
        # Best effort, so that the command works without Redis.
        announce(db, users=[row.id], best_effort=True)
        change(db, row)
        db.flush()
        return row

    return run_in_transaction(work)
