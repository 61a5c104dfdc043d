"""What Spotify says about the calls of a user's own application concerns no one else."""

from contextlib import ExitStack
from typing import cast

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading
from app.models import SpotifyUser
from app.models.snapshots import ConnectionSnapshot
from app.resilience.bulkhead import Bulkhead
from app.spotify.gateway.prepared_call import bulkhead_caller
from tests.helpers.cached_reads import get
from tests.helpers.factories import create_connections
from tests.helpers.flows import connect, register, slug
from tests.helpers.own_applications import create_own_applications
from tests.helpers.rate_limits import calls, retry_after_of, seconds_left
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.settings(SPOTIFY_APPS="both", GATEWAY_SHARE_SECONDS="0"),
]

DAY = 86_400


@pytest.fixture
def client_id(client: FlaskClient, sandbox: SandboxClient) -> str:
    """The client id of an application with which the client's user has connected."""
    [application] = sandbox.create_applications(1, quota="extended")
    register(client, "ada")
    own = {name: application[name] for name in ("client_id", "client_secret")}
    assert client.put("/api/spotify/app", json=own).status_code == 200
    connect(client, sandbox)
    sandbox.clear_calls()
    return str(application["client_id"])


def test_429_of_an_own_application_delays_no_one_else(
    client: FlaskClient, jonas: FlaskClient, sandbox: SandboxClient, client_id: str
) -> None:
    members = {"kind": "rate_limited", "body": "quota", "retry_after": DAY}
    sandbox.fault(on="api", client_id=client_id, **members)
    assert retry_after_of(get(client, "me")) in seconds_left(DAY)
    sandbox.clear_calls()

    assert get(jonas, "me").status_code == 200
    assert retry_after_of(get(client, "me")) in seconds_left(DAY)
    assert calls(sandbox) == 1


def test_429_of_the_deployment_delays_no_own_application(
    client: FlaskClient, jonas: FlaskClient, sandbox: SandboxClient, client_id: str
) -> None:
    sandbox.fault(on="api", kind="rate_limited", body="quota", retry_after=DAY)
    assert retry_after_of(get(jonas, "me")) in seconds_left(DAY)

    assert get(client, "me").status_code == 200


def test_failing_calls_of_an_own_application_open_its_circuit_breaker_only(
    client: FlaskClient, jonas: FlaskClient, sandbox: SandboxClient, client_id: str
) -> None:
    sandbox.fault(on="api", kind="envoy_503", times=None, client_id=client_id)
    while calls(sandbox) < 15:  # consecutive failures of one caller
        get(client, "me")
    sandbox.clear_calls()

    rejected = get(client, "me")
    assert (rejected.status_code, slug(rejected)) == (503, "spotify-unavailable")
    assert calls(sandbox) == 0
    assert get(jonas, "me").status_code == 200


def test_people_of_an_own_application_share_half_of_the_slots(app: Flask, sandbox: SandboxClient) -> None:
    create_own_applications(app, sandbox, 1, people=3)
    create_connections(app, sandbox, 1)
    with app.app_context(), reading() as db:
        found = cast("list[ConnectionSnapshot]", db.scalars(sa.select(SpotifyUser)).all())
    bulkhead = Bulkhead(slots=4, queue=4)
    with ExitStack() as calls:
        acquired = [
            bulkhead.try_acquire(calls.enter_context(bulkhead.admit(bulkhead_caller(connection))))
            for connection in found
        ]

    assert acquired == [True, True, False, True]
