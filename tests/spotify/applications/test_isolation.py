"""An application that Spotify does not serve affects no other, and costs few calls."""

from collections import Counter
from collections.abc import Iterable

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra.database import reading, writing
from app.models import AccessToken, AppState, GrantState
from app.spotify.tokens import breaker
from tests.helpers.factories import advance_time, create_connections, refresh_due
from tests.helpers.own_applications import Created, create_own_applications, states
from tests.helpers.sandbox_client import CLIENT_ID, SandboxClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("database_url", ["mariadb"], indirect=True),
    pytest.mark.settings(REFRESH_RATE="2000", REFRESH_WORKERS="8"),
]

MINUTE, DAY = 60, 86_400
PEOPLE = 5  # that an application in development mode serves
# At first one for each person, because they run at the same time. Then one after each pause.
MAX_CALLS = {
    "deleted": PEOPLE + 4,  # after 1, 2, 4, and 8 minutes
    "wrong secret": PEOPLE + 4,
    "rate limited": PEOPLE,
    "unusable": PEOPLE + 8,  # after 5, 10, 20, … 320 seconds, but at most once a minute
    "revoked": 2 * PEOPLE,  # each rejection is confirmed after 15 minutes
}
# How long the slow application's calls take to fail.
SLOW_SECONDS = 3
UNUSABLE = ("envoy_503", "truncated_json", "close", "html_200", "json_502")


def break_applications(
    sandbox: SandboxClient, confidential: list[Created], public: list[Created]
) -> dict[str, list[Created]]:
    """Break ten applications in each way. A public one has no secret that could be wrong."""
    ways = {
        "wrong secret": confidential[:10],
        "rate limited": confidential[10:20],
        "unusable": [*confidential[20:], *public[:5]],
        "deleted": public[5:15],
        "revoked": public[15:],
    }
    for each in ways["deleted"]:
        sandbox.delete_application(each["client_id"])
    for each in ways["wrong secret"]:
        sandbox.change_application(each["client_id"], client_secret="another-secret-of-the-application")
    for each in ways["rate limited"]:
        sandbox.fault(
            on="token", kind="rate_limited", retry_after=DAY, times=None, client_id=each["client_id"]
        )
    slow = ways["unusable"][0]
    sandbox.fault(on="token", kind="timeout", seconds=SLOW_SECONDS, times=PEOPLE, client_id=slow["client_id"])
    for number, each in enumerate(ways["unusable"]):
        kind = UNUSABLE[number % len(UNUSABLE)]
        sandbox.fault(on="token", kind=kind, times=None, client_id=each["client_id"])
    for each in ways["revoked"]:
        sandbox.revoke_application(each["client_id"])
    return ways


def repair(app: Flask, sandbox: SandboxClient, ways: dict[str, list[Created]], idle: list[int]) -> None:
    """Repair what can be repaired, and let a day pass, in which `idle` connections are not refreshed."""
    for each in ways["wrong secret"]:
        sandbox.change_application(each["client_id"], client_secret=each["client_secret"])
    sandbox.clear_faults()
    with app.app_context(), writing() as db:
        is_idle = AccessToken.spotify_user_id.in_(idle)
        db.execute(sa.update(AccessToken).where(is_idle).values(due_at=None))
    advance_time(app, sandbox, DAY)


def connections_of(applications: Iterable[Created]) -> list[int]:
    return [connection for each in applications for connection in each["connections"]]


def grants(app: Flask, connections: list[int]) -> Counter[tuple[str, int, int]]:
    """Count these grants by state, failures, and generation."""
    columns = sa.select(AccessToken.state, AccessToken.failures, AccessToken.generation)
    with app.app_context(), reading() as db:
        found = db.execute(columns.where(AccessToken.spotify_user_id.in_(connections)))
        return Counter((row.state, row.failures, row.generation) for row in found)


def calls(sandbox: SandboxClient) -> Counter[str]:
    """Count the refresh calls of each client id."""
    return Counter(call["client_id"] for call in sandbox.calls(grant_type="refresh_token"))


def test_fifty_broken_applications_of_two_hundred_affect_no_other(app: Flask, sandbox: SandboxClient) -> None:
    confidential = create_own_applications(app, sandbox, 100, people=PEOPLE)
    public = create_own_applications(app, sandbox, 100, people=PEOPLE, public=True)
    of_deployment = create_connections(app, sandbox, 40)
    ways = break_applications(sandbox, confidential[::4], public[::4])
    broken = [each for way in ways.values() for each in way]
    healthy = [each for each in (*confidential, *public) if each not in broken]
    unaffected = [*connections_of(healthy), *of_deployment]
    assert (len(broken), len(healthy), len(unaffected)) == (50, 150, 790)

    refresh_due(app)
    assert grants(app, unaffected) == {(GrantState.ACTIVE, 0, 1): 790}
    for minutes in (1, 1, 1, 1, 1, 1, 1, 9):
        advance_time(app, sandbox, minutes * MINUTE)
        refresh_due(app)

    assert grants(app, unaffected) == {(GrantState.ACTIVE, 0, 1): 790}
    counted = calls(sandbox)
    assert {counted[each["client_id"]] for each in healthy} == {PEOPLE}
    assert counted[CLIENT_ID] == 40
    for name, applications in ways.items():
        most = max(counted[each["client_id"]] for each in applications)
        assert most <= MAX_CALLS[name], name
    assert {name: states(app, applications) for name, applications in ways.items()} == {
        "wrong secret": [AppState.REFUSED],
        "rate limited": [AppState.RATE_LIMITED],
        "unusable": [AppState.UNAVAILABLE],
        "deleted": [AppState.REFUSED],
        "revoked": [AppState.ACTIVE],
    }
    with app.app_context():
        assert breaker.open_breakers() == []

    repair(app, sandbox, ways, idle=unaffected)
    sandbox.clear_calls()
    for _ in range(3):  # the probes, then the other connections of those applications
        refresh_due(app)
    for name in ("wrong secret", "rate limited", "unusable"):
        repaired = connections_of(ways[name])
        assert grants(app, repaired) == {(GrantState.ACTIVE, 0, 1): 10 * PEOPLE}, name
        assert states(app, ways[name]) == [AppState.ACTIVE], name
    counted = calls(sandbox)
    assert {counted[each["client_id"]] for each in ways["deleted"]} == {1}
    kept = grants(app, connections_of(ways["deleted"]))
    assert {state for state, _, _ in kept} == {GrantState.ACTIVE}
    ended = grants(app, connections_of(ways["revoked"]))
    assert {state for state, _, _ in ended} == {GrantState.REAUTHORIZATION_REQUIRED}
