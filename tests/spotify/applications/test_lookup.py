"""Grants that were issued to a person's own application are refreshed with it, and with no other."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from app.errors import SpotifyNotConnected, SpotifyUnavailable
from app.infra.database import reading, writing
from app.infra.encryption import DecryptionError
from app.models import AccessToken, SpotifyApp
from app.services import services
from app.spotify.applications.lookup import rows_of_grants
from tests.helpers.factories import create_connections, give_own_application, refresh_due
from tests.helpers.flows import refresh_count
from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET, SandboxClient

# The sandbox does not know the deployment's application here, only the person's own one.
pytestmark = pytest.mark.settings(SPOTIFY_CLIENT_ID="deployment", SPOTIFY_CLIENT_SECRET="of-the-deployment")


def grant_of(app: Flask, spotify_user_id: int) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken).where(AccessToken.spotify_user_id == spotify_user_id)).one()


def see_as_earlier_release(app: Flask, spotify_user_id: int, client_id: str | None) -> None:
    """Hide the column that an earlier release does not read, or show it again."""
    with app.app_context(), writing() as db:
        own = sa.update(AccessToken).where(AccessToken.spotify_user_id == spotify_user_id)
        db.execute(own.values(client_id=client_id, due_at=AccessToken.expires_at))


def test_own_application_refreshes_for_a_request_and_for_the_scheduler(
    app: Flask, sandbox: SandboxClient
) -> None:
    for_request, for_scheduler = create_connections(app, sandbox, 2)
    for spotify_user_id in (for_request, for_scheduler):
        give_own_application(app, spotify_user_id, CLIENT_ID, CLIENT_SECRET)

    with app.app_context():
        services().tokens.access_token_for(for_request)
    assert refresh_due(app).refreshed == 1

    assert refresh_count(sandbox) == 2
    assert [grant_of(app, found).generation for found in (for_request, for_scheduler)] == [1, 1]


@pytest.mark.requirement("M7")
def test_earlier_release_leaves_grants_of_own_applications_alone(app: Flask, sandbox: SandboxClient) -> None:
    [spotify_user_id] = create_connections(app, sandbox, 1)
    give_own_application(app, spotify_user_id, CLIENT_ID, CLIENT_SECRET)
    before = grant_of(app, spotify_user_id)
    with app.app_context(), pytest.raises(DecryptionError):
        services().token_cipher.decrypt(
            before.refresh_token or b"", "refresh_token", spotify_user_id, before.grant_id
        )

    see_as_earlier_release(app, spotify_user_id, None)
    assert refresh_due(app).failed == 1
    postponed = grant_of(app, spotify_user_id)

    assert refresh_count(sandbox) == 0
    assert (postponed.state, postponed.refresh_token) == ("active", before.refresh_token)
    assert postponed.due_at is not None
    assert postponed.due_at > before.expires_at + timedelta(minutes=30)
    see_as_earlier_release(app, spotify_user_id, CLIENT_ID)
    assert refresh_due(app).refreshed == 1


def test_grant_of_an_application_that_was_replaced_is_never_sent(app: Flask, sandbox: SandboxClient) -> None:
    replaced, of_deployment = create_connections(app, sandbox, 2)
    app_id = give_own_application(app, replaced, "replaced", CLIENT_SECRET)
    with app.app_context(), writing() as db:
        db.execute(sa.update(SpotifyApp).where(SpotifyApp.id == app_id).values(client_id=CLIENT_ID))
        rows = list(db.scalars(sa.select(AccessToken)))
        assert len(rows) == 2
        assert rows_of_grants(db, rows) == {}

    grant = grant_of(app, replaced)
    with app.app_context(), pytest.raises(SpotifyNotConnected):
        services().applications.of_grant(grant)
    with app.app_context():
        assert services().applications.of_grant(grant_of(app, of_deployment)).client_id == "deployment"


@pytest.mark.sqlite_only
def test_secret_is_unreadable_in_the_row_of_another_application(app: Flask, sandbox: SandboxClient) -> None:
    first, second = create_connections(app, sandbox, 2)
    ids = [give_own_application(app, found, CLIENT_ID, CLIENT_SECRET) for found in (first, second)]
    with app.app_context(), writing() as db:
        source, target = (db.get_one(SpotifyApp, app_id) for app_id in ids)
        target.client_secret = source.client_secret

    with app.app_context():
        assert services().applications.of_grant(grant_of(app, first)).client_secret == CLIENT_SECRET
        with pytest.raises(SpotifyUnavailable):
            services().applications.of_grant(grant_of(app, second))
