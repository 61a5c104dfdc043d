"""The operator's commands. Results go to standard output, complaints to standard error."""

import sys
from datetime import timedelta

import click
import sqlalchemy as sa
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from app.doctor import checks
from app.infra import database
from app.infra.cli_command import Command
from app.infra.clock import rfc3339
from app.infra.database import reading
from app.models import AccessToken, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.tokens import breaker, key_rotation, refresh_queue, scheduler
from app.user.commands import users

tokens = AppGroup("tokens", help="Spotify tokens in custody.")


@tokens.command("refresh-due", cls=Command)
def refresh_due() -> None:
    """Refresh what is due within REFRESH_LEAD_SECONDS, once. Exits 1 if any could not be."""
    total = refresh_queue.count_due()

    def show(done: scheduler.RefreshStats) -> None:
        if done.total % 50 == 0:
            click.echo(f"{done.total} of {total} done", err=True)

    done = scheduler.refresh_due(_app(), progress=show)
    click.echo(f"refreshed {done.refreshed}, failed {done.failed}")
    for line in _held_back():
        click.echo(line, err=True)
    if done.failed:
        sys.exit(1)


@tokens.command("status", cls=Command)
def status() -> None:
    """Count links by state, and say what is due, what happened in the last hour and what is held back."""
    now = database.read_db_now()
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
            "due now": refresh_queue.count_due(),
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
        for trouble in breaker.open_breakers()
    ]


def _keys() -> list[str]:
    ours = services().token_cipher.key_ids
    in_use = {**dict.fromkeys(ours, 0), **key_rotation.keys_in_use()}
    return [
        f"key {key_id:<26}{count:>22} rows{'' if key_id in ours else ': MISSING from TOKEN_ENCRYPTION_KEYS'}"
        for key_id, count in in_use.items()
    ]


@tokens.command("rotate-keys", cls=Command)
def rotate_keys() -> None:
    """Seal all tokens with the first of TOKEN_ENCRYPTION_KEYS, online.

    May be stopped and run again. Exits 1 while another key is still needed.
    """

    def show(moved: key_rotation.RotationProgress) -> None:
        click.echo(f"{moved.seen} of {moved.total} rows seen", err=True)

    moved = key_rotation.rotate_keys(show)
    click.echo(f"sealed anew {moved.sealed}, unreadable {moved.unreadable}")
    newest = services().token_cipher.newest_key_id
    still = {key_id: count for key_id, count in key_rotation.keys_in_use().items() if key_id != newest}
    for key_id, count in still.items():
        known = key_id in services().token_cipher.key_ids
        click.echo(
            f"Key {key_id} {'must stay' if known else 'is missing'}: {count} rows are sealed with it.",
            err=True,
        )
    if still:
        sys.exit(1)
    click.echo(f"Every token is sealed with key {newest}; the others may be removed.")


@click.command("scheduler")
@with_appcontext
def scheduler_command() -> None:
    """Refresh tokens ahead of time, until stopped. Any number of these may run."""
    key_rotation.require_keys(_app())
    scheduler.run(_app())


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Check that everything this needs is there and answers. Exits 1 if something is not."""
    healthy = True
    for finding in checks.run_checks():
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
