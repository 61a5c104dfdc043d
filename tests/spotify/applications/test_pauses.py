"""An application that Spotify does not serve is paused, and continues when it works again."""

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from app.errors import BacklineError, SpotifyAppRefused, SpotifyUnavailable
from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, AppState, Breaker, GrantState, SpotifyApp
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.applications import pauses
from app.spotify.applications.pauses import ApplicationPauses
from app.spotify.tokens import breaker
from app.spotify.tokens.breaker_rules import Reason
from app.spotify.tokens.metrics import ConnectionCollector
from tests.helpers.factories import advance_time, create_connections, refresh_due
from tests.helpers.flows import refresh_count
from tests.helpers.mail_server import Mailbox
from tests.helpers.own_applications import Created, create_own_applications, states
from tests.helpers.sandbox_client import CLIENT_ID, SandboxClient

pytestmark = [pytest.mark.slow, pytest.mark.settings(REFRESH_RATE="2000", REFRESH_WORKERS="4")]

MINUTE, DAY = 60, 86_400


def request_token(app: Flask, spotify_user_id: int) -> None:
    with app.app_context():
        services().tokens.access_token_for(spotify_user_id)


def error_of_request(app: Flask, spotify_user_id: int) -> BacklineError:
    with pytest.raises(BacklineError) as raised:
        request_token(app, spotify_user_id)
    return raised.value


def stored(app: Flask, application: Created) -> SpotifyApp:
    with app.app_context(), reading() as db:
        return db.get_one(SpotifyApp, application["id"])


def valid_connections(app: Flask) -> list[int]:
    with app.app_context(), reading() as db:
        refreshed = sa.select(AccessToken.spotify_user_id).where(AccessToken.generation > 0)
        return sorted(db.scalars(refreshed))


def open_reasons(app: Flask) -> list[str]:
    with app.app_context():
        return [found.name for found in breaker.open_breakers()]


@pytest.mark.sqlite_only
def test_request_with_a_refused_application_tells_the_owner_without_a_call(
    app: Flask, sandbox: SandboxClient
) -> None:
    [application] = create_own_applications(app, sandbox, 1, people=2)
    sandbox.change_application(application["client_id"], client_secret="another-secret")

    for connection in (*application["connections"], *application["connections"]):
        assert type(error_of_request(app, connection)) is SpotifyAppRefused
    assert refresh_count(sandbox) == 1
    assert states(app, [application]) == [AppState.REFUSED]

    sandbox.change_application(application["client_id"], client_secret=application["client_secret"])
    advance_time(app, sandbox, MINUTE)
    for connection in application["connections"]:
        request_token(app, connection)
    assert refresh_count(sandbox) == 3
    assert states(app, [application]) == [AppState.ACTIVE]


@pytest.fixture
def _long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause an application that does not respond for five minutes instead of five seconds.

    This machine may be slow.
    """
    rule = pauses._RULES[Outcome.UNAVAILABLE]
    assert rule.first == timedelta(seconds=5)
    monkeypatch.setitem(pauses._RULES, Outcome.UNAVAILABLE, replace(rule, first=timedelta(minutes=5)))


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("_long_pauses")
@pytest.mark.parametrize(
    ("fault", "state", "seconds"),
    [
        ({"kind": "rate_limited", "retry_after": DAY}, AppState.RATE_LIMITED, DAY),
        ({"kind": "rate_limited"}, AppState.RATE_LIMITED, 30),
        ({"kind": "envoy_503"}, AppState.UNAVAILABLE, 5 * MINUTE),
    ],
    ids=["rate-limited-for-a-day", "rate-limited", "unavailable"],
)
def test_requests_wait_for_the_end_of_the_pause(
    app: Flask, sandbox: SandboxClient, fault: dict[str, object], state: AppState, seconds: int
) -> None:
    [application] = create_own_applications(app, sandbox, 1, people=2)
    sandbox.fault(on="token", times=None, client_id=application["client_id"], **fault)
    for connection in application["connections"]:
        error = error_of_request(app, connection)
        assert type(error) is SpotifyUnavailable
    assert seconds - 60 < (error.retry_after or 0) <= seconds
    assert states(app, [application]) == [state]
    assert refresh_count(sandbox) == 1

    sandbox.clear_faults()
    advance_time(app, sandbox, seconds + 1)
    request_token(app, application["connections"][1])
    assert states(app, [application]) == [AppState.ACTIVE]
    with app.app_context(), reading() as db:  # the other one does not wait for its own backoff
        assert db.scalars(sa.select(AccessToken.not_before)).all() == [None, None]


@pytest.mark.sqlite_only
def test_pauses_double_and_the_owner_gets_one_email(
    app: Flask, sandbox: SandboxClient, mailbox: Mailbox
) -> None:
    [application] = create_own_applications(app, sandbox, 1)
    sandbox.delete_application(application["client_id"])
    waits = []
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        refresh_due(app)
        row = stored(app, application)
        assert row.paused_until is not None
        waits.append(round((row.paused_until - row.updated_at).total_seconds() / MINUTE))
        advance_time(app, sandbox, minutes * MINUTE)

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert refresh_count(sandbox) == 8
    [mail] = mailbox.wait()
    assert mail["Subject"] == "Spotify rejects your application"


@pytest.mark.sqlite_only
def test_failures_at_the_same_time_count_as_one(app: Flask, sandbox: SandboxClient) -> None:
    [application] = create_own_applications(app, sandbox, 1)
    for outcome in (Outcome.MISCONFIGURED, Outcome.MISCONFIGURED, Outcome.UNAVAILABLE):
        record(app, application, outcome)

    assert (stored(app, application).failures, states(app, [application])) == (1, [AppState.REFUSED])


@pytest.mark.sqlite_only
def test_refused_application_stays_so_until_spotify_accepts_it(app: Flask, sandbox: SandboxClient) -> None:
    [application] = create_own_applications(app, sandbox, 1)
    record(app, application, Outcome.MISCONFIGURED)
    for outcome in (Outcome.UNAVAILABLE, Outcome.RATE_LIMITED):
        record(app, application, outcome, is_probe=True)
        assert states(app, [application]) == [AppState.REFUSED]
    record(app, application, Outcome.REFRESHED)  # it began before
    assert states(app, [application]) == [AppState.REFUSED]
    record(app, application, Outcome.INVALID_GRANT, is_probe=True)

    assert states(app, [application]) == [AppState.ACTIVE]
    assert stored(app, application).failing_since is None


def record(app: Flask, application: Created, outcome: Outcome, *, is_probe: bool = False) -> None:
    with app.app_context():
        tried = services().applications.decrypt(stored(app, application))
        ApplicationPauses(lambda *_: None).record_outcome(tried, outcome, is_probe=is_probe)


@pytest.mark.sqlite_only
def test_accepted_code_ends_the_pause(app: Flask, sandbox: SandboxClient) -> None:
    [application] = create_own_applications(app, sandbox, 1)
    record(app, application, Outcome.MISCONFIGURED)
    with app.app_context():
        tried = services().applications.decrypt(stored(app, application))
        ApplicationPauses(lambda *_: None).client_accepted(tried)

    assert states(app, [application]) == [AppState.ACTIVE]


@pytest.mark.sqlite_only
def test_one_of_two_simultaneous_callers_is_the_probe(app: Flask, sandbox: SandboxClient) -> None:
    [application] = create_own_applications(app, sandbox, 1)
    record(app, application, Outcome.UNAVAILABLE)
    advance_time(app, sandbox, 6)
    first, second = stored(app, application), stored(app, application)

    with app.app_context(), writing() as db:
        now = database.db_now(db)
        assert pauses.require_active(db, first, now)
        with pytest.raises(SpotifyUnavailable):
            pauses.require_active(db, second, now)


MARIADB = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@MARIADB
@pytest.mark.usefixtures("_long_pauses")
def test_paused_application_is_probed_by_one_caller(
    app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    [application] = create_own_applications(app, sandbox, 1, people=5)
    record(app, application, Outcome.UNAVAILABLE)
    advance_time(app, sandbox, 5 * MINUTE)
    sandbox.fault(on="token", kind="envoy_503", times=None)

    for worker in (app, another_worker):
        refresh_due(worker)
    assert refresh_count(sandbox) == 1
    for connection in application["connections"]:
        assert type(error_of_request(app, connection)) is SpotifyUnavailable
    assert refresh_count(sandbox) == 1


@pytest.mark.sqlite_only
def test_probe_of_the_breaker_takes_the_probe_of_one_application(app: Flask, sandbox: SandboxClient) -> None:
    """The others do not wait for the outcome of calls that were never made."""
    applications = create_own_applications(app, sandbox, 3)
    for each in applications:
        record(app, each, Outcome.MISCONFIGURED)
    advance_time(app, sandbox, MINUTE)
    with app.app_context(), writing() as db:
        now = database.db_now(db)
        db.add(Breaker(name=Reason.OWN_OUTAGE, opened_at=now, probe_at=now))

    refresh_due(app)  # the first one closes the breaker

    assert open_reasons(app) == []
    assert valid_connections(app) == sorted(each["connections"][0] for each in applications)


@pytest.mark.sqlite_only
def test_outage_pauses_no_application_but_those_that_failed_before(
    app: Flask, sandbox: SandboxClient
) -> None:
    probed, failed_before, failed_with_it = applications = create_own_applications(app, sandbox, 3)
    with app.app_context(), writing() as db:
        now = database.db_now(db)
        db.add(Breaker(name=Reason.OWN_OUTAGE, opened_at=now, probe_at=now))
        for application, minutes in ((failed_before, 10), (failed_with_it, 0)):
            row = db.get_one(SpotifyApp, application["id"])
            row.state, row.failing_since = AppState.UNAVAILABLE, now - timedelta(minutes=minutes)
            row.paused_until = now + timedelta(minutes=10)
    sandbox.fault(on="token", kind="envoy_503")
    refresh_due(app)
    assert open_reasons(app) == [Reason.OWN_OUTAGE]
    assert states(app, [probed]) == [AppState.ACTIVE]

    advance_time(app, sandbox, 6)
    refresh_due(app)
    assert open_reasons(app) == []
    found = [states(app, [each]) for each in applications]
    assert found == [[AppState.ACTIVE], [AppState.UNAVAILABLE], [AppState.ACTIVE]]


@MARIADB
def test_paused_application_does_not_keep_others_from_the_queue(app: Flask, sandbox: SandboxClient) -> None:
    """Its connections are due first, and there are more of them than a batch looks at."""
    [application] = create_own_applications(app, sandbox, 1, people=5)
    with app.app_context(), writing() as db:
        earlier = AccessToken.expires_at - sa.text("INTERVAL 1 HOUR")
        db.execute(sa.update(AccessToken).values(expires_at=earlier))
    record(app, application, Outcome.MISCONFIGURED)
    others = create_connections(app, sandbox, 3)

    assert refresh_due(app).refreshed == 3
    assert valid_connections(app) == others


@MARIADB
def test_broken_deployment_does_not_pause_own_applications(app: Flask, sandbox: SandboxClient) -> None:
    """The deployment's connections are due first, and there are more of them than a batch looks at."""
    create_connections(app, sandbox, 60, expired_for=7200)
    applications = create_own_applications(app, sandbox, 20)
    sandbox.fault(on="token", kind="invalid_client", times=None, client_id=CLIENT_ID)
    refresh_due(app)

    assert open_reasons(app) == [Reason.MISCONFIGURED]
    own = sorted(connection for each in applications for connection in each["connections"])
    assert valid_connections(app) == own


@MARIADB
def test_outage_of_all_own_applications_ends_with_the_first_probe(app: Flask, sandbox: SandboxClient) -> None:
    applications = create_own_applications(app, sandbox, 30)
    of_deployment = create_connections(app, sandbox, 20)
    for each in applications:
        sandbox.fault(on="token", kind="google_502", times=None, client_id=each["client_id"])
    refresh_due(app)
    at_first = refresh_count(sandbox)

    assert open_reasons(app) == [Reason.OWN_OUTAGE]
    assert valid_connections(app) == of_deployment
    assert at_first < 20 + 30
    for _ in range(5):
        advance_time(app, sandbox, 5)
        refresh_due(app)
    sandbox.clear_faults()
    advance_time(app, sandbox, 6)
    for _ in range(2):
        refresh_due(app)
    assert open_reasons(app) == []
    assert states(app, applications) == [AppState.ACTIVE]
    assert len(valid_connections(app)) == 50


@MARIADB
def test_false_revocations_of_own_applications_mark_no_grant(app: Flask, sandbox: SandboxClient) -> None:
    applications = create_own_applications(app, sandbox, 30)
    for each in applications:
        fault = {"kind": "false_invalid_grant", "times": None}
        sandbox.fault(on="token", client_id=each["client_id"], **fault)
    refresh_due(app)

    assert open_reasons(app) == [Reason.OWN_REVOCATIONS]
    with app.app_context(), reading() as db:
        assert set(db.scalars(sa.select(AccessToken.state))) == {GrantState.ACTIVE}


@pytest.mark.sqlite_only
def test_rejections_with_own_applications_count_for_no_grant_of_the_deployment(
    app: Flask, sandbox: SandboxClient
) -> None:
    """Not even after their owners have removed those applications, and with them the connections."""
    create_own_applications(app, sandbox, 9)  # ten would open a breaker
    sandbox.fault(on="token", kind="false_invalid_grant", times=None)
    refresh_due(app)
    with app.app_context(), writing() as db:
        db.execute(sa.delete(SpotifyApp))
        assert db.scalars(sa.select(AccessToken)).all() == []
    create_connections(app, sandbox, 1)
    refresh_due(app)

    assert refresh_count(sandbox) == 10
    assert open_reasons(app) == []


@pytest.mark.sqlite_only
def test_metrics_tell_own_applications_from_the_deployments(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 2)
    for each in create_own_applications(app, sandbox, 1):
        sandbox.delete_application(each["client_id"])
    refresh_due(app)

    with app.app_context():
        families = list(ConnectionCollector(has_application=True).collect())
    samples = [sample for family in families for sample in family.samples]
    counts = {(one.name, *one.labels.values()): one.value for one in samples if one.value}
    assert counts["backline_spotify_apps", "refused"] == 1
    recent = {key[1:]: value for key, value in counts.items() if key[0] == "backline_recent_refreshes"}
    assert recent == {("refreshed", "deployment"): 2, ("misconfigured", "own"): 1}
