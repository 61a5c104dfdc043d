"""Steps of people in the app, as functions."""

import requests
from playwright.sync_api import Page, expect

from tests.helpers.flows import PASSWORD
from tests.helpers.servers import LONG, Server
from tests.spa.pages import Pages


def sign_up(page: Page, spa: Pages, name: str = "ada") -> None:
    page.goto(f"{spa.origin}/sign-up")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Email").fill(f"{name}@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()


def sign_in(page: Page, name: str = "ada", password: str = PASSWORD) -> None:
    """Fill in the sign-in page."""
    page.get_by_label("Username or email").fill(name)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def sign_out(page: Page) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()


def connect(page: Page, button: str = "Connect Spotify", person: str = "Mira T.") -> None:
    """Go from the app to the consent page and back."""
    page.get_by_role("button", name=button).click()
    agree(page, person)
    expect(page.get_by_text("Spotify is connected.")).to_be_visible()


def disconnect(page: Page) -> None:
    """Disconnect Spotify, which the person could sign in with."""
    page.get_by_role("button", name="Disconnect Spotify").click()
    page.get_by_role("group", name="You will no longer sign in").get_by_role(
        "button", name="Disconnect"
    ).click()
    expect(page.get_by_text("Spotify is disconnected")).to_be_visible()


def agree(page: Page, person: str = "Mira T.") -> None:
    """Agree on the consent page, which remembers the person after the first time."""
    page.get_by_role("button", name="Agree").wait_for()
    if page.get_by_role("radio").count():
        page.get_by_role("radio", name=person).check()
    page.get_by_role("button", name="Agree").click()


def go_to(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()


def expect_connected(page: Page, person: str = "Mira T.") -> None:
    card = page.get_by_role("region", name="Spotify")
    expect(card).to_contain_text(person)
    expect(card).to_contain_text("Connected")


def start_device(api: Server, name: str = "tv", scope: str = "spotify:read") -> dict[str, str]:
    """Start a device authorization, and return the response."""
    form = {"client_name": name, "scope": scope}
    response = requests.post(f"{api.url}/api/oauth/device_authorization", data=form, timeout=LONG)
    assert response.status_code == 200, response.text
    device: dict[str, str] = response.json()
    return device
