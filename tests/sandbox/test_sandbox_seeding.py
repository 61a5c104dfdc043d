"""Seeded people: their tokens, and how they behave."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import requests

from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.sandbox.conftest import App
from tests.sandbox.shapes import REFRESH_RESPONSE, check

DAY = timedelta(days=1)


def test_seeded_people_have_working_tokens(app: App) -> None:
    people = app.sandbox.seed(3)
    assert [person["id"] for person in people] == ["seed-00001", "seed-00002", "seed-00003"]
    assert len({person["account_id"] for person in people}) == 3
    for person in people:
        assert set(person) == {"id", "account_id", "refresh_token", "access_token", "expires_in", "scope"}
        response = app.refresh(person["refresh_token"]).json()
        check(response, REFRESH_RESPONSE)
        assert (response["expires_in"], response["scope"]) == (person["expires_in"], person["scope"])
        for token in (person["access_token"], response["access_token"]):
            me = app.call(token, "GET", "me").json()
            assert (me["id"], me["account_id"]) == (person["id"], person["account_id"])
    shown = app.sandbox.people()[4:]
    assert [(p["id"], p["product"], p["grants"]) for p in shown] == [(p["id"], "premium", 1) for p in people]
    assert [grant["person"] for grant in app.sandbox.tokens()] == [person["id"] for person in people]
    assert [call["person"] for call in app.sandbox.calls("/v1/me")] == [p["id"] for p in people for _ in "12"]


def test_seeded_people_agreed_to_the_requested_scopes(app: App) -> None:
    (person,) = app.sandbox.seed(1, scopes=["user-top-read", "streaming", "streaming"])
    assert person["scope"] == "streaming user-top-read"
    assert app.call(person["access_token"], "GET", "me/top/tracks").status_code == 200
    assert app.call(person["access_token"], "GET", "me/tracks").status_code == 403
    (person,) = app.sandbox.seed(1, scopes=[])
    assert person["scope"] == ""
    assert "scope" not in app.refresh(person["refresh_token"]).json()


def test_grant_settings_apply_to_seeded_people(app: App) -> None:
    app.sandbox.settings(granted_scopes=["streaming"], expires_in=120)
    (person,) = app.sandbox.seed(1, scopes=["streaming", "user-top-read"])
    assert (person["scope"], person["expires_in"]) == ("streaming", 120)
    app.sandbox.advance(125)
    assert app.call(person["access_token"], "GET", "me").status_code == 401


def test_seeded_grants_end_six_months_after_consent(app: App) -> None:
    agreed = datetime.now(UTC) - 180 * DAY
    (person,) = app.sandbox.seed(1, authorized_at=agreed.isoformat())
    assert app.sandbox.tokens()[0]["authorized_at"][:19] == agreed.isoformat()[:19]
    assert app.refresh(person["refresh_token"]).status_code == 200
    app.sandbox.advance(5 * 86400)
    assert app.refresh(person["refresh_token"]).json()["error_description"] == "Refresh token revoked"


def test_seeded_people_never_get_a_taken_id(sandbox: SandboxClient) -> None:
    sandbox.rename("mira_t_42", "seed-00003")
    ids = [person["id"] for person in sandbox.seed(2) + sandbox.seed(2)]
    assert ids == ["seed-00001", "seed-00002", "seed-00004", "seed-00005"]
    account_ids = [person["account_id"] for person in sandbox.people()]
    assert len(set(account_ids)) == len(account_ids) == 8


def test_reset_removes_seeded_people(app: App) -> None:
    (before,) = app.sandbox.seed(1)
    app.sandbox.reset()
    assert len(app.sandbox.people()) == 4
    assert app.refresh(before["refresh_token"]).json()["error_description"] == "Invalid refresh token"
    (again,) = app.sandbox.seed(1)
    assert again["id"] == before["id"]
    assert again["refresh_token"] != before["refresh_token"]


def test_unlisted_seeded_people_can_agree(app: App) -> None:
    (person,) = app.sandbox.seed(1, scopes=["streaming"])
    page = app.visit(scope="streaming user-top-read").text
    assert len(re.findall(r'type="radio"', page)) == 4
    assert "seed-" not in page
    response = app.connect("seed-00001", scope="streaming user-top-read")
    assert response["scope"] == "streaming user-top-read"
    assert app.call(response["access_token"], "GET", "me").json()["account_id"] == person["account_id"]
    assert app.sandbox.people()[4]["grants"] == 2


def test_seeded_people_are_not_asked_again(app: App) -> None:
    app.sandbox.seed(1, scopes=["streaming"])
    app.sandbox.consent(app.authorize_url(scope=None), "seed-00001", browser=app.http)
    assert app.visit(scope="streaming").is_redirect
    page = app.visit(scope="streaming user-top-read")
    assert page.status_code == 200
    assert "Signed in as seed-00001" in page.text


def test_seeded_person_can_agree_without_a_page(app: App) -> None:
    app.sandbox.seed(2)
    app.sandbox.settings(auto_consent="seed-00002")
    code = callback_query(app.visit().headers["Location"])["code"]
    me = app.call(app.exchange(code).json()["access_token"], "GET", "me").json()
    assert me["id"] == "seed-00002"


def test_index_page_counts_seeded_people(sandbox: SandboxClient) -> None:
    assert "seeded people" not in requests.get(sandbox.url, timeout=60).text
    sandbox.seed(2000)
    page = requests.get(sandbox.url, timeout=60).text
    assert "Plus 2000 seeded people" in page
    assert page.count("/revoke") == 4
    assert "seed-0" not in page


def test_seeded_people_can_be_revoked_and_renamed(app: App) -> None:
    one, other = app.sandbox.seed(2)
    app.sandbox.rename(one["id"], "one")
    app.sandbox.revoke("one")
    assert app.refresh(one["refresh_token"]).json()["error_description"] == "Refresh token revoked"
    assert app.call(one["access_token"], "GET", "me").json()["id"] == "one"
    assert app.refresh(other["refresh_token"]).status_code == 200
    assert [person["grants"] for person in app.sandbox.people()[4:]] == [0, 1]
    revoked = requests.post(f"{app.sandbox.url}/_sandbox/people/{one['id']}/revoke", timeout=60)
    assert revoked.status_code == 404


def test_fault_applies_to_one_seeded_person(app: App) -> None:
    one, other = app.sandbox.seed(2)
    app.sandbox.fault(on="refresh", kind="envoy_503", times=None, person=one["id"])
    assert [app.refresh(person["refresh_token"]).status_code for person in (one, other)] == [503, 200]
    assert [call["person"] for call in app.sandbox.calls("/api/token")] == [one["id"], other["id"]]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "me/player", 204),
        ("GET", "me/player/devices", 200),
        ("GET", "me/player/recently-played", 200),
        ("GET", "me/tracks", 200),
        ("GET", "me/playlists", 200),
        ("GET", "me/top/artists", 200),
        ("PUT", "me/library?uris=spotify:track:x", 200),
    ],
)
def test_web_api_serves_seeded_people(app: App, method: str, path: str, status: int) -> None:
    (person,) = app.sandbox.seed(1)
    assert app.call(person["access_token"], method, path).status_code == status


def test_seeded_people_have_separate_libraries_and_devices(app: App) -> None:
    one, other = (person["access_token"] for person in app.sandbox.seed(2))
    app.call(one, "PUT", "me/library?uris=spotify:track:x")
    contains = "me/library/contains?uris=spotify:track:x"
    assert [app.call(token, "GET", contains).json() for token in (one, other)] == [[True], [False]]
    devices = [app.call(token, "GET", "me/player/devices").json()["devices"] for token in (one, other)]
    assert devices[0][0]["id"] != devices[1][0]["id"]


def test_every_person_has_a_picture(sandbox: SandboxClient) -> None:
    (person,) = sandbox.seed(1)
    url = f"{sandbox.url}/_sandbox/images/person"
    assert requests.get(f"{url}/{person['account_id']}.svg", timeout=60).status_code == 200
    assert requests.get(f"{url}/nobody.svg", timeout=60).status_code == 404
    assert requests.get(f"{sandbox.url}/_sandbox/images/dog/x.svg", timeout=60).status_code == 404


def test_ten_thousand_people_are_seeded_at_once(app: App) -> None:
    people = app.sandbox.seed(10_000)  # a linear search for each person would take minutes
    assert (len(people), people[-1]["id"]) == (10_000, "seed-10000")
    assert len({person["refresh_token"] for person in people}) == 10_000
    for person in people[::1000]:
        assert app.refresh(person["refresh_token"]).status_code == 200
