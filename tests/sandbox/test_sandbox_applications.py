"""The sandbox's applications: credentials, allowlists, grants, faults, and the dashboard."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.helpers.sandbox_client import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    SandboxClient,
    callback_query,
    running_sandbox,
)
from tests.sandbox.conftest import PKCE, VERIFIER, App
from tests.sandbox.shapes import CODE_RESPONSE, REFRESH_RESPONSE, check
from tests.sandbox.test_sandbox_token import oauth_error

OTHER_URI = "http://127.0.0.1:7777/elsewhere"
NOT_REGISTERED = (
    "The user is not registered for this application. "
    "Please check your settings on https://developer.spotify.com/dashboard."
)


def credentials(application: dict[str, Any]) -> tuple[str, str]:
    return application["client_id"], application["client_secret"]


def refresh(app: App, application: dict[str, Any], refresh_token: str) -> requests.Response:
    return app.token(credentials(application), grant_type="refresh_token", refresh_token=refresh_token)


def connect(app: App, application: dict[str, Any], person: str) -> dict[str, Any]:
    code = app.code(person, client_id=application["client_id"])
    response = app.token(
        credentials(application), grant_type="authorization_code", code=code, redirect_uri=REDIRECT_URI
    )
    check(response.json(), CODE_RESPONSE)
    tokens: dict[str, Any] = response.json()
    return tokens


def test_two_hundred_applications_with_five_people_each(app: App) -> None:
    created = app.sandbox.create_applications(200, seed={"count": 5, "scopes": ["streaming"]})
    assert len({application["client_id"] for application in created}) == 200
    assert len(app.sandbox.applications()) == 201
    people = [person for application in created for person in application["people"]]
    assert len({person["account_id"] for person in people}) == 1000
    last = created[-1]
    assert (len(last["users"]), last["owner"], last["quota"]) == (4, last["people"][0]["id"], "development")
    for person in (last["people"][0], last["people"][4]):
        token = refresh(app, last, person["refresh_token"]).json()["access_token"]
        assert app.call(token, "GET", "me").json()["id"] == person["id"]


def test_grants_belong_to_an_application(app: App) -> None:
    one, two = app.sandbox.create_applications(2, quota="extended")
    tokens = connect(app, one, "jonas.k")
    code = app.code("jonas.k", client_id=one["client_id"])
    exchange = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
    for other in (two, app.sandbox.applications()[0]):
        assert oauth_error(refresh(app, other, tokens["refresh_token"])) == (
            "invalid_grant",
            "Invalid refresh token",
        )
        assert oauth_error(app.token(credentials(other), **exchange)) == (
            "invalid_grant",
            "Invalid authorization code",
        )
    check(refresh(app, one, tokens["refresh_token"]).json(), REFRESH_RESPONSE)
    assert app.token(credentials(one), **exchange).status_code == 200


def test_each_application_has_its_own_credentials(app: App) -> None:
    one, two = app.sandbox.create_applications(2)

    def ask(client_id: str, secret: str) -> requests.Response:
        return app.token((client_id, secret), grant_type="client_credentials")

    assert ask(*credentials(one)).status_code == 200
    assert oauth_error(ask(one["client_id"], two["client_secret"])) == (
        "invalid_client",
        "Invalid client secret",
    )
    app.sandbox.change_application(one["client_id"], client_secret="changed")
    assert oauth_error(ask(*credentials(one))) == ("invalid_client", "Invalid client secret")
    assert ask(one["client_id"], "changed").status_code == 200
    app.sandbox.delete_application(one["client_id"])
    assert oauth_error(ask(one["client_id"], "changed")) == ("invalid_client", "Invalid client")
    assert ask(*credentials(two)).status_code == 200


def test_each_application_has_its_own_redirect_uris_and_consent(app: App) -> None:
    (one,) = app.sandbox.create_applications(redirect_uris=[OTHER_URI], name="Ada's app")
    changes = {"client_id": one["client_id"]}
    assert "INVALID_CLIENT: Invalid redirect URI" in app.visit(**changes).text
    assert "INVALID_CLIENT: Invalid redirect URI" in app.visit(redirect_uri=OTHER_URI).text
    with requests.Session() as browser:
        app.sandbox.consent(app.authorize_url(), "jonas.k", browser=browser)
        url = app.authorize_url(**changes, redirect_uri=OTHER_URI)
        page = browser.get(url, allow_redirects=False, timeout=60)
        assert "Ada's app wants to connect" in html.unescape(page.text)
    app.sandbox.delete_application(one["client_id"])
    gone = app.visit(**changes, redirect_uri=OTHER_URI)
    assert (gone.status_code, "INVALID_CLIENT: Invalid client" in gone.text) == (400, True)


def test_people_who_are_not_on_the_list_connect_but_get_403(app: App) -> None:
    (one,) = app.sandbox.create_applications(owner="mira_t_42", users=["aiko@example.com"])
    statuses = {}
    for person in ("mira_t_42", "aiko-87", "jonas.k"):
        response = app.call(connect(app, one, person)["access_token"], "GET", "me")
        statuses[person] = response.status_code
    assert statuses == {"mira_t_42": 200, "aiko-87": 200, "jonas.k": 403}
    assert response.text == NOT_REGISTERED
    assert response.headers["Content-Type"].startswith("text/plain")
    credential = app.token(credentials(one), grant_type="client_credentials").json()["access_token"]
    assert app.call(credential, "GET", "search?q=a&type=track").status_code == 200
    app.sandbox.change_application(one["client_id"], quota="extended")
    assert app.call(connect(app, one, "jonas.k")["access_token"], "GET", "me").status_code == 200


def test_owner_without_premium_stops_every_call(app: App) -> None:
    (one,) = app.sandbox.create_applications(owner="jonas.k", users=["mira@example.com"])
    response = app.call(connect(app, one, "mira_t_42")["access_token"], "GET", "me")
    assert (response.status_code, len(response.text)) == (403, 159)


def test_public_client_rotates_and_confidential_one_does_not(app: App) -> None:
    (one,) = app.sandbox.create_applications()
    client_id = one["client_id"]
    code = app.code(client_id=client_id, **PKCE)
    exchange = {"grant_type": "authorization_code", "redirect_uri": REDIRECT_URI, "client_id": client_id}
    first = app.token(None, **exchange, code=code, code_verifier=VERIFIER).json()["refresh_token"]

    def again(refresh_token: str) -> requests.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return app.token(None, **form, client_id=client_id)

    second = again(first).json()["refresh_token"]
    assert oauth_error(again(first)) == ("invalid_grant", "Refresh token revoked")
    app.sandbox.settings(rotate_public=False)
    assert "refresh_token" not in again(second).json()
    app.sandbox.settings(rotate_public=True)
    (seeded,) = app.sandbox.seed(1, client_id=client_id, public=True)
    assert "refresh_token" in again(seeded["refresh_token"]).json()
    assert "refresh_token" not in refresh(app, one, connect(app, one, "mira_t_42")["refresh_token"]).json()


def test_faults_and_journal_know_the_application(app: App) -> None:
    broken, fine = app.sandbox.create_applications(2, seed={"count": 1})
    limit = {"kind": "rate_limited", "retry_after": 86400, "times": None, "client_id": broken["client_id"]}
    app.sandbox.fault(on="token", **limit)
    app.sandbox.fault(on="api", **limit)

    def statuses(application: dict[str, Any]) -> list[int]:
        (person,) = application["people"]
        called = app.call(person["access_token"], "GET", "me")
        refreshed = refresh(app, application, person["refresh_token"])
        assert refreshed.headers.get("Retry-After") == called.headers.get("Retry-After")
        return [called.status_code, refreshed.status_code]

    assert (statuses(broken), statuses(fine)) == ([429, 429], [200, 200])
    app.visit(client_id=broken["client_id"])
    seen = [call["path"] for call in app.sandbox.calls(client_id=broken["client_id"])]
    assert seen == ["/v1/me", "/api/token", "/authorize"]
    app.sandbox.fault(on="token", kind="empty_503", times=None)
    app.sandbox.clear_faults(broken["client_id"])
    assert (statuses(broken), statuses(fine)) == ([200, 503], [200, 503])


def test_all_grants_of_an_application_can_be_revoked(app: App) -> None:
    one, two = app.sandbox.create_applications(2, quota="extended", seed={"count": 3})
    kept = connect(app, two, "mira_t_42")["refresh_token"]
    ended = connect(app, one, "mira_t_42")["refresh_token"]
    app.sandbox.control("POST", "people/mira_t_42/revoke", {"client_id": one["client_id"]})
    assert oauth_error(refresh(app, one, ended)) == ("invalid_grant", "Refresh token revoked")
    assert refresh(app, two, kept).status_code == 200
    assert app.sandbox.revoke_application(one["client_id"]) == 3
    for person in one["people"]:
        response = refresh(app, one, person["refresh_token"])
        assert oauth_error(response) == ("invalid_grant", "Refresh token revoked")
    assert refresh(app, two, two["people"][0]["refresh_token"]).status_code == 200


def test_tokens_of_a_deleted_application_end(app: App) -> None:
    (one,) = app.sandbox.create_applications(seed={"count": 1})
    (person,) = one["people"]
    app.sandbox.delete_application(one["client_id"])
    assert app.call(person["access_token"], "GET", "me").status_code == 401
    assert oauth_error(refresh(app, one, person["refresh_token"])) == ("invalid_client", "Invalid client")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"count": 0}, "count must be 1 to 1000"),
        ({"count": 2, "client_id": "x"}, "client_id and client_secret are for one application"),
        ({"client_id": CLIENT_ID}, "client_id is in use"),
        ({"client_id": "a/b"}, "client_id must be 1 to 255 letters"),
        ({"owner": "nobody"}, "owner must be a person's id"),
        ({"redirect_uris": ["http://localhost/x"]}, "redirect_uris must be a list of redirect URIs"),
        ({"redirect_uris": ["/callback"]}, "redirect_uris must be a list of redirect URIs"),
        ({"quota": "none"}, "quota must be one of development, extended"),
        ({"users": ["mira_t_42"]}, "users must be a list of different email addresses"),
        ({"users": [f"{n}@example.com" for n in range(5)]}, "in development mode, users must be at most 4"),
        ({"seed": {"count": 6}}, "in development mode, an application has 5 people at most"),
        ({"seed": {"count": 1, "public": 1}}, "public must be true or false"),
        ({"seed": {"count": 1, "client_id": CLIENT_ID}}, "seed must be a JSON object"),
        ({"secret": "x"}, "unknown member: secret"),
    ],
)
def test_invalid_application_is_rejected(sandbox: SandboxClient, body: object, message: str) -> None:
    response = requests.post(f"{sandbox.url}/_sandbox/applications", json=body, timeout=60)
    assert response.status_code == 422
    assert response.json()["message"].startswith(message)
    assert len(sandbox.applications()) == 1
    assert len(sandbox.people()) == 4


def test_applications_are_kept_and_reset(tmp_path: Path) -> None:
    options = ["--keep", str(tmp_path / "sandbox.json")]
    with running_sandbox(options=options) as sandbox:
        (one,) = sandbox.create_applications(users=["aiko@example.com"], name="Kept")
        sandbox.create_applications(seed={"count": 2})
        with App(sandbox).http as http:
            app = App(sandbox)
            app.http = http
            refresh_token = connect(app, one, "aiko-87")["refresh_token"]
    with running_sandbox(options=options, client_secret="other") as sandbox:
        first, kept = sandbox.applications()
        assert credentials(first) == (CLIENT_ID, "other")
        assert kept == one
        with App(sandbox).http as http:
            app = App(sandbox)
            app.http = http
            assert refresh(app, one, refresh_token).status_code == 200
        sandbox.reset()
        assert [application["client_id"] for application in sandbox.applications()] == [CLIENT_ID]


class Dashboard:
    """A person at the dashboard, without JavaScript."""

    def __init__(self, sandbox: SandboxClient) -> None:
        self.url = f"{sandbox.url}/dashboard"

    def post(self, path: str, **form: str) -> requests.Response:
        origin = {"Origin": self.url.removesuffix("/dashboard"), "Sec-Fetch-Site": "same-origin"}
        return requests.post(f"{self.url}{path}", data=form, headers=origin, timeout=60)

    def create(self, **changes: str) -> requests.Response:
        form = {"name": "Mine", "redirect_uris": REDIRECT_URI, "api": "web", "owner": "mira_t_42"}
        return self.post("/create", **(form | changes))


def test_dashboard_creates_edits_and_deletes_an_application(app: App) -> None:
    dashboard = Dashboard(app.sandbox)
    page = dashboard.create(redirect_uris=f"{OTHER_URI}\r\n{REDIRECT_URI}", description="For <me> & you")
    assert page.status_code == 200
    assert "For &lt;me&gt; &amp; you" in page.text
    application = app.sandbox.applications()[1]
    client_id = application["client_id"]
    assert application["redirect_uris"] == [OTHER_URI, REDIRECT_URI]
    for shown in credentials(application):
        assert shown in page.text
    assert client_id in requests.get(dashboard.url, timeout=60).text

    path = f"/{client_id}"
    for email in ("jonas.k@example.com", "Jonas.K@example.com", "a@example.com", "b@example.com"):
        assert dashboard.post(f"{path}/users/add", email=email).status_code == 200
    full = dashboard.post(f"{path}/users/add", email="c@example.com")
    assert (full.status_code, "has up to 5 people" in full.text) == (422, True)
    dashboard.post(f"{path}/users/remove", email="a@example.com")
    dashboard.post(f"{path}/edit", name="Renamed", redirect_uris=REDIRECT_URI, quota="development")
    dashboard.post(f"{path}/secret")
    changed = app.sandbox.applications()[1]
    assert changed["users"] == ["jonas.k@example.com", "Jonas.K@example.com", "b@example.com"]
    assert (changed["name"], changed["redirect_uris"]) == ("Renamed", [REDIRECT_URI])
    assert changed["client_secret"] != application["client_secret"]
    assert "was deleted" in dashboard.post(f"{path}/delete").text
    assert requests.get(f"{dashboard.url}{path}", timeout=60).status_code == 404


def test_dashboard_names_what_is_wrong_and_keeps_what_was_typed(app: App) -> None:
    dashboard = Dashboard(app.sandbox)
    page = dashboard.create(name="", redirect_uris="http://localhost:1/<x>", api="")
    assert page.status_code == 422
    text = html.unescape(page.text)
    assert "Enter a name" in text
    assert "http://localhost:1/<x>: This redirect URI is not secure" in text
    for field in ("name", "redirect_uris", "api"):
        assert re.search(rf'name="{field}"[^>]* aria-invalid="true"', page.text), field
    assert len(app.sandbox.applications()) == 1


def test_dashboard_makes_one_application_fail(app: App) -> None:
    dashboard = Dashboard(app.sandbox)
    (one,) = app.sandbox.create_applications()
    path = f"/{one['client_id']}/faults"
    assert "rate_limited" in dashboard.post(path, fault="token_rate_limit").text
    limited = app.token(credentials(one), grant_type="client_credentials")
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "3600")
    assert app.token(grant_type="client_credentials").status_code == 200
    dashboard.post(path, fault="none")
    assert app.token(credentials(one), grant_type="client_credentials").status_code == 200
    token = connect(app, one, "mira_t_42")["refresh_token"]
    dashboard.post(path, fault="revoke")
    assert oauth_error(refresh(app, one, token)) == ("invalid_grant", "Refresh token revoked")


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:1"}, {"Host": "evil.example"}]
)
def test_other_sites_can_link_to_the_dashboard_but_not_post(
    sandbox: SandboxClient, headers: dict[str, str]
) -> None:
    url = f"{sandbox.url}/dashboard"
    form = {"name": "x", "redirect_uris": REDIRECT_URI, "api": "web", "owner": "mira_t_42"}
    assert requests.post(f"{url}/create", data=form, headers=headers, timeout=60).status_code == 403
    assert len(sandbox.applications()) == 1
    allowed = 403 if "Host" in headers else 200
    assert requests.get(url, headers=headers, timeout=60).status_code == allowed


def test_index_links_to_the_dashboard(sandbox: SandboxClient) -> None:
    page = requests.get(sandbox.url, timeout=60).text
    assert 'href="/dashboard"' in page
    assert f'href="/dashboard/{CLIENT_ID}"' in page
    assert CLIENT_SECRET not in page


def test_code_of_a_deleted_application_is_useless(app: App) -> None:
    (one,) = app.sandbox.create_applications()
    callback = app.sandbox.consent(app.authorize_url(client_id=one["client_id"]))
    app.sandbox.delete_application(one["client_id"])
    assert oauth_error(app.exchange(callback_query(callback)["code"])) == (
        "invalid_grant",
        "Invalid authorization code",
    )
