"""Commands for operators. Results go to standard output, progress and problems to standard error."""

import sys
from datetime import timedelta

import click
import sqlalchemy as sa
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from app.doctor import checks, startup
from app.doctor.report import print_report
from app.imports.commands import imports
from app.infra import database, probes
from app.infra.cli_command import Command
from app.infra.clock import rfc3339
from app.infra.database import reading
from app.models import AccessToken, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.services import services
from app.settings.types import is_http_url
from app.spotify.tokens import breaker, key_rotation, refresh_queue
from app.spotify.tokens.metrics import count_connections
from app.spotify.tokens.refresh_pass import RefreshStats
from app.user.app_commands import apps
from app.user.commands import users
from app.version import __version__

tokens = AppGroup("tokens", help="Manage stored Spotify tokens.")


@tokens.command("refresh-due", cls=Command)
def refresh_due() -> None:
    """Refresh tokens that expire within REFRESH_LEAD_SECONDS. Exits 1 if a refresh failed."""
    total = refresh_queue.count_due()

    def show(stats: RefreshStats) -> None:
        if stats.total % 50 == 0:
            click.echo(f"{stats.total} of {total} connections done", err=True)

    stats = services().scheduler.refresh_due(show)
    services().scheduler.complete_imported()
    click.echo(f"refreshed {stats.refreshed}, failed {stats.failed}")
    for line in _paused():
        click.echo(line, err=True)
    if stats.failed:
        sys.exit(1)


@tokens.command("status", cls=Command)
def status() -> None:
    """Show connections by state, due refreshes, recent outcomes, and whether refreshing is paused."""
    for label, value in _counts().items():
        click.echo(f"{label:<30}{value:>22}")
    for line in [*_paused(), *_keys()]:
        click.echo(line)


def _counts() -> dict[str, object]:
    now = database.read_db_now()
    with reading() as db:
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
        return {
            **count_connections(has_application=services().applications.deployment is not None),
            "active, but expired": db.execute(expired).scalar_one(),
            "due now": refresh_queue.count_due(),
            "oldest due": rfc3339(oldest) if oldest is not None and oldest <= now else "none",
            **{f"last hour: {outcome.value}": by_outcome.get(outcome.value, 0) for outcome in Outcome},
            "last hour: no outcome yet": by_outcome.get(None, 0),
        }


def _paused() -> list[str]:
    return [
        f"Refreshing is paused ({found.name}) since {rfc3339(found.opened_at)}. "
        f"Next attempt at {rfc3339(found.probe_at)}."
        for found in breaker.open_breakers()
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
    """Re-encrypt all tokens with the first of TOKEN_ENCRYPTION_KEYS, without downtime.

    It can be stopped and run again. Exits 1 if another key is still needed.
    """

    def show(progress: key_rotation.RotationProgress) -> None:
        click.echo(f"{progress.seen} of {progress.total} rows processed", err=True)

    cipher = services().token_cipher
    result = key_rotation.rotate_keys(cipher, show)
    click.echo(f"re-encrypted {result.reencrypted}, unreadable {result.unreadable}")
    newest = cipher.newest_key_id
    remaining = {key_id: count for key_id, count in key_rotation.keys_in_use().items() if key_id != newest}
    for key_id, count in remaining.items():
        problem = "is still needed" if key_id in cipher.key_ids else "is missing"
        click.echo(f"Key {key_id} {problem}: it encrypts {count} rows.", err=True)
    if remaining:
        sys.exit(1)
    click.echo(f"All tokens are encrypted with key {newest}. You can remove the other keys.")


@click.command("scheduler", cls=Command)
@with_appcontext
def scheduler_command() -> None:
    """Refresh tokens before they expire, until stopped. Any number of schedulers can run at once."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    startup.require_usable_servers(app, services())
    services().scheduler.run()


@click.command("doctor", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--url", help="The public URL of the API, to check its proxies: https://api.example.com")
@with_appcontext
def doctor_command(as_json: bool, url: str | None) -> None:
    """Check the settings and the servers that Backline needs. Exits 1 if a check fails."""
    if url and not is_http_url(url):
        raise click.BadParameter("must look like https://api.example.com", param_hint="--url")
    if not print_report(checks.run_checks(services(), url), as_json=as_json):
        sys.exit(1)


@click.command("version", cls=Command)
def version_command() -> None:
    """Show the version of Backline and of the schema that it needs. `flask --version` shows Flask's."""
    schema, _ = probes.schema_revisions()
    click.echo(f"Backline {__version__}, schema {schema}")


def add_commands(group: AppGroup) -> None:
    """Add all commands to a group."""
    for command in (tokens, users, apps, imports, scheduler_command, doctor_command, version_command):
        group.add_command(command)
