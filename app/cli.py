"""The operator's commands. Results go to standard output, complaints to standard error."""

import sys
from datetime import timedelta
from typing import Any

import click
import marshmallow as ma
import redis
import sqlalchemy as sa
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from app import database, doctor, scheduler
from app.auth.registration import create_account
from app.auth.schemas import Registration
from app.clock import rfc3339
from app.database import reading
from app.models import AccessToken, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.parts import parts
from app.problems import Problem
from app.spotify import breaker, due, rekeying


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
    """Refresh what is due within REFRESH_LEAD_SECONDS, once. Exits 1 if any could not be."""
    total = due.count()

    def show(done: scheduler.Pass) -> None:
        if done.total % 50 == 0:
            click.echo(f"{done.total} of {total} done", err=True)

    done = scheduler.refresh_due(_app(), progress=show)
    click.echo(f"refreshed {done.refreshed}, failed {done.failed}")
    for line in _held_back():
        click.echo(line, err=True)
    if done.failed:
        sys.exit(1)


@tokens.command("status", cls=_Command)
def status() -> None:
    """Count links by state, and say what is due, what happened in the last hour and what is held back."""
    now = database.current_time()
    with reading() as db:
        states = sa.select(AccessToken.state, sa.func.count()).group_by(AccessToken.state)
        by_state = dict(db.execute(states).all())
        expired = sa.select(sa.func.count()).where(
            AccessToken.state == GrantState.ACTIVE, AccessToken.expires_at <= now
        )
        last_hour = (
            sa.select(TokenRefresh.outcome, sa.func.count())
            .where(TokenRefresh.started_at > now - timedelta(hours=1))
            .group_by(TokenRefresh.outcome)
        )
        by_outcome = dict(db.execute(last_hour).all())
        oldest = db.execute(sa.select(sa.func.min(AccessToken.due_at))).scalar_one()
        lines = {
            **{state.value: by_state.get(state.value, 0) for state in GrantState},
            "active, but expired": db.execute(expired).scalar_one(),
            "due now": due.count(),
            "oldest due": rfc3339(oldest) if oldest is not None and oldest <= now else "none",
            **{f"last hour: {outcome.value}": by_outcome.get(outcome.value, 0) for outcome in Outcome},
            "last hour: no outcome (yet)": by_outcome.get(None, 0),
        }
    for what, value in lines.items():
        click.echo(f"{what:<30}{value:>22}")
    for line in [*_held_back(), *_keys()]:
        click.echo(line)


def _held_back() -> list[str]:
    return [
        f"Refreshing is held back: {trouble.name}, since {rfc3339(trouble.opened_at)}; "
        f"one try at {rfc3339(trouble.probe_at)}."
        for trouble in breaker.open_troubles()
    ]


def _keys() -> list[str]:
    ours = parts().sealer.key_ids
    in_use = {**dict.fromkeys(ours, 0), **rekeying.keys_in_use()}
    return [
        f"key {key_id:<26}{count:>22} rows{'' if key_id in ours else ': MISSING from TOKEN_ENCRYPTION_KEYS'}"
        for key_id, count in in_use.items()
    ]


@tokens.command("rotate-keys", cls=_Command)
def rotate_keys() -> None:
    """Seal all tokens with the first of TOKEN_ENCRYPTION_KEYS, online.

    May be stopped and run again. Exits 1 while another key is still needed.
    """

    def show(moved: rekeying.Moved) -> None:
        click.echo(f"{moved.seen} of {moved.total} rows seen", err=True)

    moved = rekeying.rotate_keys(show)
    click.echo(f"sealed anew {moved.sealed}, unreadable {moved.unreadable}")
    newest = parts().sealer.newest_key_id
    still = {key_id: count for key_id, count in rekeying.keys_in_use().items() if key_id != newest}
    for key_id, count in still.items():
        known = key_id in parts().sealer.key_ids
        click.echo(
            f"Key {key_id} {'must stay' if known else 'is missing'}: {count} rows are sealed with it.",
            err=True,
        )
    if still:
        sys.exit(1)
    click.echo(f"Every token is sealed with key {newest}; the others may be removed.")


def _text(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """What was typed, which may be no text: bytes that are not UTF-8 arrive as halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("It is not text in UTF-8.") from None
    return value


@users.command("create", cls=_Command)
@click.argument("username", callback=_text)
@click.argument("email", callback=_text)
@click.password_option(
    callback=_text, help="Asked for when left out, which keeps it out of the shell's history."
)
def create(username: str, email: str, password: str) -> None:
    """Create an account."""
    try:
        new = Registration().load({"username": username, "email": email, "password": password})
        user = create_account(**new)
    except ma.ValidationError as error:
        for field, messages in dict(error.messages_dict).items():
            click.echo(f"{field}: {' '.join(messages)}", err=True)
        sys.exit(1)
    except Problem as problem:
        errors = problem.members.get("errors")
        click.echo(f"{problem.title}{f': {errors}' if errors else ''}", err=True)
        sys.exit(1)
    click.echo(f"created user {user.id}: {user.username} <{user.email}>")


@click.command("scheduler")
@with_appcontext
def scheduler_command() -> None:
    """Refresh tokens ahead of time, until stopped. Any number of these may run."""
    rekeying.require_keys(_app())
    scheduler.run(_app())


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Check that everything this needs is there and answers. Exits 1 if something is not."""
    healthy = True
    for finding in doctor.examine():
        healthy &= finding.good
        mark = "FAIL" if not finding.good else "WARN" if finding.doubtful else "ok  "
        click.echo(f"{mark}  {finding.what}")
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
