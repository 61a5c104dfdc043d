"""The operator's commands. Results go to standard output, complaints to standard error."""

import sys
from typing import Any

import click
import marshmallow as ma
import redis
import sqlalchemy as sa
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from app import doctor, scheduler
from app.auth.registration import create_account
from app.auth.schemas import Registration
from app.clock import rfc3339, utc_now
from app.database import reading
from app.models import AccessToken, GrantState
from app.problems import Problem
from app.spotify import rekeying


class _Command(click.Command):
    """A command that says in one line that MySQL or Redis is away, instead of with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (sa.exc.SQLAlchemyError, redis.RedisError) as error:
            raise click.ClickException(
                f"MySQL or Redis does not answer as it should ({type(error).__name__}). "
                "Ask `flask doctor`; after an update, run `flask db upgrade`."
            ) from error


tokens = AppGroup("tokens", help="Spotify tokens in custody.")
users = AppGroup("users", help="Accounts.")


@tokens.command("refresh-due", cls=_Command)
def refresh_due() -> None:
    """Refresh what expires within REFRESH_LEAD_SECONDS, once. Exits 1 if any could not be."""

    def show(done: scheduler.Pass) -> None:
        if done.total % 50 == 0:
            click.echo(f"{done.total} done", err=True)

    done = scheduler.refresh_due(_app(), progress=show)
    click.echo(f"refreshed {done.refreshed}, failed {done.failed}")
    if done.failed:
        sys.exit(1)


@tokens.command("status", cls=_Command)
def status() -> None:
    """Count links by state, and show the soonest expiry among the active ones."""
    with reading() as db:
        counts = dict(
            db.execute(sa.select(AccessToken.state, sa.func.count()).group_by(AccessToken.state))
            .tuples()
            .all()
        )
        active = AccessToken.state == GrantState.ACTIVE
        soonest = db.scalar(
            sa.select(AccessToken.expires_at).where(active).order_by(AccessToken.expires_at).limit(1)
        )
        overdue = db.scalar(
            sa.select(sa.func.count())
            .select_from(AccessToken)
            .where(active, AccessToken.expires_at <= utc_now())
        )
    for state in GrantState:
        click.echo(f"{state.value:<26}{counts.get(state.value, 0):>8}")
    click.echo(f"{'active, but expired':<26}{overdue or 0:>8}")
    click.echo(f"soonest expiry            {rfc3339(soonest) if soonest else 'none'}")


@tokens.command("rotate-keys", cls=_Command)
def rotate_keys() -> None:
    """Seal all tokens with the first of TOKEN_ENCRYPTION_KEYS, online.

    May be stopped and run again. Exits 1 if a row could not be read; then keep the old keys.
    """

    def show(moved: rekeying.Moved) -> None:
        click.echo(f"{moved.seen} rows seen, {moved.sealed} sealed anew", err=True)

    moved = rekeying.rotate_keys(show)
    click.echo(f"seen {moved.seen}, sealed anew {moved.sealed}, unreadable {moved.unreadable}")
    if moved.unreadable:
        sys.exit(1)
    click.echo("Every token is sealed with the newest key; the others may be removed.")


@users.command("create", cls=_Command)
@click.argument("username")
@click.argument("email")
@click.password_option(help="Asked for when left out, which keeps it out of the shell's history.")
def create(username: str, email: str, password: str) -> None:
    """Create an account."""
    try:
        new = Registration().load({"username": username, "email": email, "password": password})
        user, _ = create_account(**new)
    except ma.ValidationError as error:
        for field, messages in dict(error.messages_dict).items():
            click.echo(f"{field}: {' '.join(messages)}", err=True)
        sys.exit(1)
    except Problem as problem:
        click.echo(problem.title, err=True)
        sys.exit(1)
    click.echo(f"created user {user.id}: {user.username} <{user.email}>")


@click.command("scheduler")
@with_appcontext
def scheduler_command() -> None:
    """Refresh tokens ahead of time, until stopped. Any number of these may run."""
    scheduler.run(_app())


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Check that everything this needs is there and answers. Exits 1 if something is not."""
    healthy = True
    for finding in doctor.examine():
        healthy &= finding.good
        click.echo(f"{'ok  ' if finding.good else 'FAIL'}  {finding.what}")
        if finding.advice:
            click.echo(f"      {finding.advice}")
    sys.exit(0 if healthy else 1)


def init_app(app: Flask) -> None:
    for command in (tokens, users, scheduler_command, doctor_command):
        app.cli.add_command(command)


def _app() -> Flask:
    """The application itself, for threads that outlive this context's proxy."""
    found: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    return found
