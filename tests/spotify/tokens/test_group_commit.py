"""Results of a batch are stored together. One connection's problem neither fails nor delays the others."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra import database, mysql
from app.infra.database import reading, writing
from app.models import AccessToken, SpotifyUser, TokenRefresh
from app.spotify.tokens import group_commit
from app.spotify.tokens.refresh_pass import RefreshStats
from config import Config
from tests.conftest import MakeApp
from tests.helpers.factories import create_connections, refresh_due
from tests.helpers.flows import refresh_count
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, eventually

pytestmark = [pytest.mark.slow, pytest.mark.settings(REFRESH_RATE="2000", REFRESH_WORKERS="8")]

MARIADB = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


def generations(app: Flask) -> list[int]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(AccessToken.generation).order_by(AccessToken.id)))


def outcomes(app: Flask) -> list[str | None]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(TokenRefresh.outcome).order_by(TokenRefresh.spotify_user_id)))


@contextmanager
def during_calls(app: Flask, sandbox: SandboxClient, count: int) -> Iterator[Callable[[], RefreshStats]]:
    """Run the block while Spotify holds all calls of a pass. The function that it gets ends the pass."""
    sandbox.fault(on="refresh", kind="park", times=count)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(refresh_due, app)
        sandbox.wait_for_held(count)

        def end() -> RefreshStats:
            sandbox.release()
            return future.result()

        try:
            yield end
        finally:
            sandbox.release()


def wait_for_all(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let results wait until there are this many, however long their calls take on a busy machine."""
    monkeypatch.setattr(group_commit, "FULL_BATCH", count)
    monkeypatch.setattr(group_commit, "WAIT_SECONDS", LONG)


def test_results_of_a_batch_share_one_transaction(
    app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_all(monkeypatch, 8)
    create_connections(app, sandbox, 8)
    with during_calls(app, sandbox, 8) as end:
        assert end() == RefreshStats(refreshed=8)

    with app.app_context(), reading() as db:
        finished = list(db.scalars(sa.select(TokenRefresh.finished_at)))
    assert len(set(finished)) == 1
    assert generations(app) == [1] * 8


def test_disconnect_of_one_connection_does_not_affect_the_others(app: Flask, sandbox: SandboxClient) -> None:
    first, *_ = create_connections(app, sandbox, 6)
    with during_calls(app, sandbox, 6) as end:
        with app.app_context(), writing() as db:
            db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id == first))
        end()

    assert generations(app) == [1] * 5
    assert outcomes(app) == ["superseded"] + ["refreshed"] * 5


def test_new_consent_of_one_person_is_kept(app: Flask, sandbox: SandboxClient) -> None:
    first, *_ = create_connections(app, sandbox, 6)
    with during_calls(app, sandbox, 6) as end:
        with app.app_context(), writing() as db:
            mine = AccessToken.spotify_user_id == first
            db.execute(sa.update(AccessToken).where(mine).values(grant_id="n" * 32, access_token=b"new"))
        end()

    with app.app_context(), reading() as db:
        kept = db.scalars(sa.select(AccessToken).where(AccessToken.spotify_user_id == first)).one()
        assert (kept.grant_id, kept.generation, kept.access_token) == ("n" * 32, 0, b"new")
    assert outcomes(app) == ["superseded"] + ["refreshed"] * 5


def test_duplicate_key_of_one_connection_does_not_affect_the_others(
    app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else has recorded a refresh of the same generation, which the unique key rejects."""
    first, *_ = create_connections(app, sandbox, 6)
    with during_calls(app, sandbox, 6) as end:
        with app.app_context(), writing() as db:
            claimed = db.scalars(sa.select(TokenRefresh).where(TokenRefresh.spotify_user_id == first)).one()
            where = {"spotify_user_id": first, "grant_id": claimed.grant_id, "generation": 0}
            when = {"started_at": claimed.started_at, "finished_at": claimed.started_at}
            db.add(TokenRefresh(**where, **when, attempt_id="e" * 32, outcome="refreshed", effective=1))
        assert end() == RefreshStats(refreshed=5, failed=1)

    assert generations(app) == [0, 1, 1, 1, 1, 1]
    lost = [record for record in caplog.records if record.message == "token_response_lost"]
    assert [vars(record)["spotify_user_id"] for record in lost] == [first]


@MARIADB
def test_locked_row_does_not_delay_the_others(
    make_app: MakeApp, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "engine_options", waiting_long_for_locks(mysql.engine_options))
    app = make_app()
    first, *others = create_connections(app, sandbox, 6)
    mine = sa.select(AccessToken.id).where(AccessToken.spotify_user_id == first).with_for_update()
    with during_calls(app, sandbox, 6) as end, app.app_context():
        with writing() as db:
            db.execute(mine)
            sandbox.release()
            eventually(lambda: generations(app) == [0] + [1] * len(others))
        assert end() == RefreshStats(refreshed=6)

    assert generations(app) == [1] * 6
    assert refresh_count(sandbox) == 6


def waiting_long_for_locks(options: Callable[[Config], dict[str, Any]]) -> Callable[[Config], dict[str, Any]]:
    """Let transactions wait for locks longer than the test does."""

    def changed(config: Config) -> dict[str, Any]:
        connection = {"read_timeout": 200, "init_command": "SET SESSION innodb_lock_wait_timeout=200"}
        return {**options(config), "connect_args": {**options(config)["connect_args"], **connection}}

    return changed


def test_undecryptable_token_is_not_claimed_with_its_batch(app: Flask, sandbox: SandboxClient) -> None:
    first, *_ = create_connections(app, sandbox, 6)
    with app.app_context(), writing() as db:
        mine = AccessToken.spotify_user_id == first
        db.execute(sa.update(AccessToken).where(mine).values(refresh_token=b"\x01damaged"))

    assert refresh_due(app) == RefreshStats(refreshed=5, failed=1)
    assert generations(app) == [0, 1, 1, 1, 1, 1]
    assert outcomes(app) == ["refreshed"] * 5


def test_generation_that_the_history_has_is_skipped(
    app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    """`access_tokens` alone was restored. The grant continues after the newest generation."""
    first, *_ = create_connections(app, sandbox, 3)
    with app.app_context(), writing() as db:
        grant = db.scalars(sa.select(AccessToken).where(AccessToken.spotify_user_id == first)).one()
        now = database.db_now(db)
        for generation in (0, 1, 2):
            where = {"spotify_user_id": first, "grant_id": grant.grant_id, "generation": generation}
            db.add(
                TokenRefresh(
                    **where, attempt_id=f"{generation:032}", outcome="refreshed", effective=1, started_at=now
                )
            )

    assert refresh_due(app) == RefreshStats(refreshed=3)
    assert generations(app) == [4, 1, 1]
    logged = [record.message for record in caplog.records if record.message.startswith("token_")]
    assert logged == ["token_generation_repaired"]


@pytest.mark.settings(REFRESH_WORKERS="32")
def test_refresh_in_a_batch_takes_at_most_four_round_trips(
    app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compare-and-swaps of claim and commit are two. The others are shared by a batch."""
    wait_for_all(monkeypatch, 32)
    create_connections(app, sandbox, 32)
    statements: list[str] = []
    with app.app_context():
        engine = database.db.engine

    def count_statement(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    def count_commit(_: object) -> None:
        statements.append("COMMIT")

    sa.event.listen(engine, "before_cursor_execute", count_statement)
    sa.event.listen(engine, "commit", count_commit)
    try:
        with during_calls(app, sandbox, 32) as end:
            assert end() == RefreshStats(refreshed=32)
    finally:
        sa.event.remove(engine, "before_cursor_execute", count_statement)
        sa.event.remove(engine, "commit", count_commit)
    assert len(statements) <= 4 * 32, statements
