"""A claim counts only for the row that was read, and a given-up one leaves no trace."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, GrantState, TokenRefresh
from app.services import services
from app.spotify.tokens import attempts, batch_claims, refresh
from app.spotify.tokens.batch_claims import BatchClaims, Claim
from tests.helpers.factories import create_connections
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.slow


def claim_batch(limit: int) -> list[Claim]:
    claims = BatchClaims(services().token_cipher, services().applications, services().config)
    return claims.claim(limit, database.read_db_now()).claims


@pytest.mark.parametrize(
    "change",
    [
        {"refresh_token": b"a new one, from a response without an access token", "failures": 1},
        {"refresh_token": b"the spare"},
        {"state": GrantState.REAUTHORIZATION_REQUIRED},
        {"state": GrantState.SUSPECT, "failures": 1},
        {"generation": 1},
        {"grant_id": "n" * 32},
    ],
    ids=["token-salvaged", "spare-used", "ended", "rejected", "refreshed", "new-consent"],
)
def test_claim_requires_the_row_that_was_read(
    app: Flask, sandbox: SandboxClient, change: dict[str, object]
) -> None:
    """Another caller's attempt fails, and its backoff ends, between a slow caller's read and its claim."""
    [spotify_user_id] = create_connections(app, sandbox, 1)
    with app.app_context():
        row, _ = refresh.read(spotify_user_id)
        with writing() as db:
            db.execute(sa.update(AccessToken).values(change))

        assert attempts.claim(row, services().applications.of_grant(row)) is None
        with reading() as db:
            assert db.scalars(sa.select(TokenRefresh)).all() == []

        row, _ = refresh.read(spotify_user_id)
        assert attempts.claim(row, services().applications.of_grant(row)) is not None


def test_second_claim_of_the_same_read_fails(app: Flask, sandbox: SandboxClient) -> None:
    """Both callers have read that there is no lease. One of them is a scheduler."""
    [spotify_user_id] = create_connections(app, sandbox, 1)
    with app.app_context():
        row, _ = refresh.read(spotify_user_id)
        [claim] = claim_batch(1)

        assert attempts.claim(row, services().applications.of_grant(row)) is None
        with reading() as db:
            assert db.scalars(sa.select(TokenRefresh.attempt_id)).all() == [claim.attempt.id]


def test_claim_fails_while_the_grant_is_backing_off(app: Flask, sandbox: SandboxClient) -> None:
    """Another caller's attempt has failed since the row was read."""
    [spotify_user_id] = create_connections(app, sandbox, 1)
    with app.app_context():
        row, now = refresh.read(spotify_user_id)
        with writing() as db:
            db.execute(sa.update(AccessToken).values(not_before=now + timedelta(minutes=15)))

        assert attempts.claim(row, services().applications.of_grant(row)) is None


def test_given_up_claims_can_be_claimed_immediately(app: Flask, sandbox: SandboxClient) -> None:
    """Also that of a grant whose generation was set back by a partial restore."""
    first, *_ = spotify_user_ids = create_connections(app, sandbox, 3)
    with app.app_context():
        with writing() as db:
            grant = db.scalars(sa.select(AccessToken).where(AccessToken.spotify_user_id == first)).one()
            now = database.db_now(db)
            where = {"spotify_user_id": first, "grant_id": grant.grant_id, "generation": 0}
            when = {"started_at": now - timedelta(days=1), "finished_at": now}
            db.add(TokenRefresh(**where, **when, attempt_id="e" * 32, outcome="refreshed", effective=1))
        claims = claim_batch(3)
        batch_claims.abandon(claims)

        with reading() as db:
            assert db.scalars(sa.select(TokenRefresh.attempt_id)).all() == ["e" * 32]
        again = claim_batch(3)
    assert [claim.row.spotify_user_id for claim in again] == spotify_user_ids
    assert [claim.attempt.generation for claim in again] == [1, 0, 0]
