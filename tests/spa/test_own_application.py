"""A person uses a Spotify application of their own, created on the sandbox's dashboard."""

import pytest
from playwright.sync_api import Page, expect

from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server
from tests.spa.conftest import StartApi
from tests.spa.flows import agree, connect, expect_connected, go_to, sign_up
from tests.spa.pages import Pages
from tests.spa.test_accessibility import violations

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ANOTHER_ID = "0" * 32


def open_page(page: Page) -> None:
    go_to(page, "Account")
    page.get_by_role("region", name="Spotify application").get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Use your own Spotify application")


def create_at_spotify(page: Page, redirect_uri: str) -> tuple[Page, str, str]:
    """Create an application in another tab. Returns the tab, the client id, and the client secret."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Spotify's dashboard").click()
    dashboard = opened.value
    dashboard.get_by_role("link", name="Create app").click()
    dashboard.get_by_label("App name").fill("Ada's app")
    dashboard.get_by_label("Redirect URIs").fill(redirect_uri)
    dashboard.get_by_label("Web API").check()
    dashboard.get_by_label("Owner").select_option("aiko-87")
    dashboard.get_by_role("button", name="Save").click()
    dashboard.get_by_text("View client secret").click()
    client_id, secret = (dashboard.locator(name).inner_text() for name in ("#client-id", "#client-secret"))
    return dashboard, client_id, secret


def save(page: Page, client_id: str, secret: str) -> None:
    page.get_by_label("Client ID").fill(client_id)
    page.get_by_role("textbox", name="Client secret").fill(secret)
    page.get_by_role("button", name="Check and save").click()


def expect_check(page: Page, name: str, text: str) -> None:
    row = page.get_by_role("region", name="Your application").get_by_role("listitem").filter(has_text=name)
    expect(row).to_contain_text(text)


def connect_and_check(page: Page) -> None:
    page.get_by_role("button", name="Connect Spotify and check").click()


def test_person_creates_checks_repairs_and_removes_an_application(
    page: Page, api: Server, spa: Pages, sandbox: SandboxClient
) -> None:
    sign_up(page, spa)
    connect(page)
    open_page(page)
    dashboard, client_id, secret = create_at_spotify(page, "https://ada.example/callback")

    # The connection made with the server's application ends only after asking, and if the check succeeds.
    save(page, ANOTHER_ID, secret)
    expect(page.get_by_text("Your Spotify connection will end.")).to_be_visible()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("button", name="Check and save")).to_be_focused()
    for wrong_id, wrong_secret, field in (
        (ANOTHER_ID, secret, "Client ID"),
        (client_id, "wrong", "Client secret (optional)"),
    ):
        save(page, wrong_id, wrong_secret)
        page.get_by_role("button", name="End it and save").click()
        wrong = page.get_by_role("textbox", name=field)
        expect(wrong).to_have_attribute("aria-invalid", "true")
        expect(wrong).to_be_focused()
        expect(page.get_by_role("alert")).to_have_text("Please check what you entered")
    go_to(page, "Home")
    expect_connected(page)
    open_page(page)
    save(page, client_id, secret)
    page.get_by_role("button", name="End it and save").click()
    expect(page.get_by_role("heading", name="Your application")).to_be_focused()
    expect_check(page, "Client secret", "Correct.")
    expect_check(page, "Redirect URI", "Not checked yet.")

    connect_and_check(page)
    expect(page.get_by_role("heading", name="INVALID_CLIENT: Invalid redirect URI")).to_be_visible()
    page.go_back()
    expect_check(page, "Redirect URI", "Probably missing")
    assert violations(page) + violations(dashboard) == ""
    dashboard.get_by_label("Redirect URIs").fill(page.locator(".copy code").inner_text())
    dashboard.get_by_role("button", name="Save").click()
    expect(dashboard.get_by_role("status").first).to_have_text("Saved.")

    connect_and_check(page)
    agree(page)
    expect_check(page, "User Management", "does not let your account use this application")
    expect_check(page, "Redirect URI", "Correct.")
    dashboard.get_by_label("Email").fill("mira@example.com")
    dashboard.get_by_role("button", name="Add user").click()
    expect(dashboard.get_by_role("button", name="Remove mira@example.com")).to_be_visible()
    connect_and_check(page)
    agree(page)
    expect_check(page, "User Management", "Correct.")
    go_to(page, "Home")
    expect_connected(page)

    # Without its secret, which the form does not show, the connection would break.
    open_page(page)
    save(page, client_id, "")
    expect(page.get_by_text("Your client secret will be removed")).to_be_visible()
    page.get_by_role("button", name="Keep it").click()
    expect_check(page, "Client secret", "Correct.")

    # Its secret is replaced.
    sandbox.change_application(client_id, client_secret="another")
    sandbox.expire_access_tokens()
    go_to(page, "Top tracks")
    expect(page.get_by_role("alert")).to_contain_text("Spotify rejects your application")
    page.get_by_role("link", name="Your application").click()
    expect(page.get_by_role("alert")).to_contain_text("Spotify rejects this application")
    expect_check(page, "Client secret", "Rejected by Spotify.")
    save(page, client_id, "another")
    expect_check(page, "Client secret", "Correct.")
    expect(page.get_by_text("Saved.")).to_be_visible()
    go_to(page, "Top tracks")
    expect(page.get_by_role("listitem").first).to_be_visible()

    open_page(page)
    page.get_by_role("button", name="Remove application").click()
    expect(page.get_by_text("Your Spotify connection ends")).to_be_visible()
    page.get_by_role("button", name="Remove it").click()
    expect(page.get_by_role("heading", name="Register it here")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    go_to(page, "Home")
    connect(page)  # with the server's application again


def test_public_client_connects_through_a_page_of_the_app(
    page: Page, start_api: StartApi, spa: Pages, sandbox: SandboxClient
) -> None:
    start_api(SPOTIFY_REDIRECT_URI=f"{spa.origin}/callback", SPOTIFY_APPS="own")
    (application,) = sandbox.create_applications(redirect_uris=["http://127.0.0.1/callback"], owner="aiko-87")
    sign_up(page, spa)
    page.get_by_role("button", name="Connect Spotify").click()
    page.get_by_role("link", name="Your application").click()
    expect(page.locator(".copy code")).to_have_text(f"{spa.origin}/callback")
    save(page, application["client_id"], "")
    expect_check(page, "Client secret", "Not used")
    connect_and_check(page)
    agree(page)
    expect_check(page, "User Management", "does not let your account use this application")
    sandbox.change_application(application["client_id"], users=["mira@example.com"])
    connect_and_check(page)
    agree(page)
    expect_check(page, "User Management", "Correct.")
    assert sandbox.calls("/api/token")[-1]["client_auth"] == "none"
