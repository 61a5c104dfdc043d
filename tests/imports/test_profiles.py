"""What Spotify says about imported grants: whose they are, and whether they still work."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.imports import profiles
from app.infra.database import reading, writing
from app.models import AccessToken, Breaker, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.spotify.clients.profile import Profile
from app.spotify.tokens import maintenance
from tests.helpers.factories import advance_time, count_by_state, refresh_due, run_maintenance
from tests.helpers.flows import connect, refresh_count, register, send_callback
from tests.helpers.sandbox_client import SandboxClient
from tests.imports.running import (
    complete_profiles,
    connections,
    import_links,
    json_lines,
    make_due,
)

pytestmark = pytest.mark.sqlite_only


def refresh_all(app: Flask) -> None:
    make_due(app)
    refresh_due(app)
    complete_profiles(app)


def test_connection_with_another_accounts_token_is_deleted(app: Flask, sandbox: SandboxClient) -> None:
    first, second = sandbox.seed(2)
    rows = [
        {"spotify_id": first["id"], "refresh_token": second["refresh_token"]},
        {"spotify_id": second["id"], "refresh_token": second["refresh_token"]},
    ]
    import_links(app, json_lines(rows))

    refresh_all(app)

    assert set(connections(app)) == {second["id"]}
    assert connections(app)[second["id"]].account_id == second["account_id"]


def test_profile_of_a_grant_that_was_replaced_meanwhile_changes_nothing(
    app: Flask, sandbox: SandboxClient
) -> None:
    """An earlier release does not record with a new consent that the profile is known."""
    [person] = sandbox.seed(1)
    import_links(app, json_lines([{"spotify_id": person["id"], "refresh_token": person["refresh_token"]}]))
    found = connections(app)[person["id"]]
    profile = Profile("someone-else", None, None, None, None, None)

    with app.app_context(), writing() as db:
        assert not profiles._store(db, found.id, "0" * 32, profile)
    assert set(connections(app)) == {person["id"]}
    with app.app_context(), writing() as db:
        assert profiles._store(db, found.id, found.token.grant_id, profile)
    assert not connections(app)


def test_token_of_an_account_that_is_connected_changes_nothing(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    """The import names only the user, so it cannot know yet."""
    [person] = sandbox.seed(1)
    import_links(app, json_lines([{"spotify_id": person["id"], "refresh_token": person["refresh_token"]}]))
    refresh_all(app)
    before = connections(app)[person["id"]]
    register(client, "mallory")
    import_links(app, json_lines([{"username": "mallory", "refresh_token": person["refresh_token"]}]))
    assert client.get("/api/spotify").json["status"] == "connected"

    refresh_all(app)

    after = connections(app)
    assert set(after) == {person["id"]}
    assert (after[person["id"]].user_id, after[person["id"]].token.grant_id) == (None, before.token.grant_id)
    assert client.get("/api/spotify").json == {"status": "not_connected"}


def test_dead_tokens_end_only_their_own_connections(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    """As an import may contain many of them, they must not look as if Spotify revoked everything."""
    authorized_at = (datetime.now(UTC) - timedelta(days=10)).isoformat()
    register(client, "ada")
    rows = [{"spotify_id": f"undated{number}", "refresh_token": f"dead{number}"} for number in range(12)]
    rows += [
        {"spotify_id": f"dated{number}", "refresh_token": f"gone{number}", "authorized_at": authorized_at}
        for number in range(12)
    ]
    rows.append({"username": "ada", "refresh_token": "never"})
    import_links(app, json_lines(rows))

    refresh_all(app)

    # Nothing is known of its account, so there is nothing to show.
    assert client.get("/api/spotify").json == {"status": "not_connected"}
    assert count_by_state(app) == {GrantState.REAUTHORIZATION_REQUIRED: 12, GrantState.SUSPECT: 12}
    with app.app_context(), reading() as db:
        assert set(db.scalars(sa.select(TokenRefresh.outcome))) == {Outcome.AGED}
        assert not db.scalars(sa.select(Breaker).where(Breaker.closed_at.is_(None))).all()
    assert refresh_count(sandbox) == 25
    advance_time(app, sandbox, 16 * 60)
    refresh_due(app)
    assert refresh_count(sandbox) == 25 + 12  # the suspects' confirmation


def test_profile_is_asked_for_again_after_a_failure(app: Flask, sandbox: SandboxClient) -> None:
    [person] = sandbox.seed(1)
    import_links(app, json_lines([{"spotify_id": person["id"], "refresh_token": person["refresh_token"]}]))
    sandbox.fault(on="me", kind="empty_503", times=None)
    refresh_all(app)
    row = connections(app)[person["id"]]
    assert (row.account_id, row.profile_due_at is None) == (None, False)
    sandbox.clear_faults()
    assert complete_profiles(app) == 0  # not at once

    make_due(app)
    complete_profiles(app)

    assert connections(app)[person["id"]].account_id == person["account_id"]


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_grants_that_wait_for_their_first_refresh_stay_unlocked(app: Flask) -> None:
    import_links(app, json_lines([{"spotify_id": name, "refresh_token": "r"} for name in ("mira", "luc")]))
    make_due(app)
    mira, luc = (connections(app)[name].id for name in ("mira", "luc"))
    with app.app_context(), writing() as db:
        of_luc = AccessToken.spotify_user_id == luc
        db.execute(sa.update(AccessToken).where(of_luc).values(access_token=b"a"))
    with app.app_context(), writing() as db, writing() as other:
        assert profiles._claim(db) == [luc]
        waiting = sa.select(AccessToken).where(AccessToken.spotify_user_id == mira)
        assert other.scalar(waiting.with_for_update(nowait=True)) is not None


def test_undated_grants_do_not_hold_up_the_reminders_of_others(
    app: Flask, client: FlaskClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reminders are recorded in batches, of those who consented first."""
    monkeypatch.setattr(maintenance, "BATCH", 1)
    import_links(app, json_lines([{"spotify_id": "undated", "refresh_token": "r"}]))
    connect(client, sandbox, person="mira_t_42")
    with app.app_context(), writing() as db:
        for spotify_id, days in (("undated", 177), ("mira_t_42", 175)):
            of_person = AccessToken.spotify_user_id == connections(app)[spotify_id].id
            authorized_at = datetime.now(UTC) - timedelta(days=days)
            db.execute(sa.update(AccessToken).where(of_person).values(authorized_at=authorized_at))

    run_maintenance(app)

    found = connections(app)
    assert found["mira_t_42"].token.reminded_days is not None
    assert found["undated"].token.reminded_days is None


def test_undated_grant_gets_no_reminder_and_a_new_consent_dates_it(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox, person="mira_t_42")
    with app.app_context(), writing() as db:
        long_ago = datetime.now(UTC) - timedelta(days=175)
        db.execute(
            sa.update(AccessToken).values(undated_grant_id=AccessToken.grant_id, authorized_at=long_ago)
        )
    assert "remind" not in {name for name, count in run_maintenance(app).items() if count}
    undated = client.get("/api/user/export").json["spotify"]
    assert (undated["authorized_at"], undated["reauthorize_by"]) == (None, None)

    again = client.get("/api/spotify/authorize?reauthorize=true").json["authorize_url"]
    connected = send_callback(client, sandbox.consent(again)).json["spotify"]

    assert connected["reauthorize_by"] is not None
    # An earlier release stores the new grant, and leaves the column as it was.
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(undated_grant_id="0" * 32))
    assert client.get("/api/spotify").json["reauthorize_by"] == connected["reauthorize_by"]
