"""Access for scripts and devices: the pages for tokens and for the codes of devices."""

import re

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.helpers.flows import PASSWORD
from tests.helpers.servers import LONG, Server
from tests.spa.conftest import NewPerson
from tests.spa.flows import go_to, sign_in, sign_up, start_device
from tests.spa.pages import Pages

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"


def status_with(api: Server, token: str) -> int:
    """Return the status of a request with this token."""
    headers = {"Authorization": f"Bearer {token}"}
    return requests.get(f"{api.url}/api/session", headers=headers, timeout=LONG).status_code


def poll(api: Server, device: dict[str, str]) -> dict[str, str]:
    form = {"grant_type": GRANT_TYPE, "device_code": device["device_code"]}
    polled: dict[str, str] = requests.post(f"{api.url}/api/oauth/token", data=form, timeout=LONG).json()
    return polled


def test_token_is_created_shown_once_and_revoked(page: Page, api: Server, spa: Pages) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_up(page, spa)
    go_to(page, "Account")
    page.get_by_role("link", name="Access tokens").click()
    expect(page.get_by_role("heading", name="Access tokens")).to_be_focused()
    expect(page.get_by_text("You have no tokens.")).to_be_visible()

    name, password = page.get_by_label("Name", exact=True), page.get_by_label("Your password", exact=True)
    create = page.get_by_role("button", name="Create token")
    rights = page.get_by_role("group", name="What it can do")
    rights.get_by_label("See your Spotify data").uncheck()
    create.click()
    expect(name).to_be_focused()
    expect(name).to_have_accessible_description(
        re.compile("What it is for.+ [A-Z]")
    )  # the hint, and the error
    expect(rights).to_have_accessible_description(re.compile("."))
    name.fill("backup script")
    rights.get_by_label("See your username").check()
    page.get_by_label("Expires in").select_option("30 days")
    create.click()
    expect(password).to_have_accessible_description(re.compile("Please enter your password."))
    password.fill("not this one")
    create.click()
    expect(password).to_have_accessible_description("This is not your password.")
    password.fill(PASSWORD)
    password.press("Enter")

    shown = page.get_by_label("Token", exact=True)
    expect(shown).to_be_focused()
    token = shown.input_value()
    assert re.fullmatch(r"bl_pat_[\w-]{43}\w{6}", token)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    page.get_by_role("button", name="Copy token").click()
    expect(page.get_by_role("status").filter(has_text="copy it yourself")).to_be_visible()
    page.evaluate("delete navigator.clipboard")
    page.get_by_role("button", name="Copy token").click()
    expect(page.get_by_role("status").filter(has_text="Token copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == token
    assert status_with(api, token) == 200
    page.get_by_role("button", name="Done").click()
    expect(name).to_be_focused()

    page.reload()
    listed = page.get_by_role("region", name="Your tokens")
    expect(listed.get_by_text("backup script")).to_be_visible()
    expect(listed.get_by_text("See your username and email address")).to_be_visible()
    expect(listed.get_by_text("Last used just now from 127.0.0.1")).to_be_visible()
    assert token not in page.content()
    page.get_by_role("button", name="Revoke backup script").click()
    expect(page.get_by_role("status").filter(has_text="“backup script” was revoked.")).to_be_visible()
    expect(page.get_by_text("You have no tokens.")).to_be_visible()
    expect(page.get_by_role("heading", name="Your tokens")).to_be_focused()
    assert status_with(api, token) == 401


def test_device_is_approved_after_signing_in(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    device = start_device(api, "x" * 60, "spotify:read account:read")
    page.goto(device["verification_uri_complete"])
    sign_in(page)
    code = page.get_by_label("Code")
    expect(code).to_have_value(device["user_code"])
    expect(page.get_by_text("x" * 60)).to_have_count(0)  # nothing happens before a click
    code.press("Enter")

    expect(page.get_by_role("heading", name="Connect a device")).to_be_focused()
    expect(page.get_by_text(f"calls itself “{'x' * 60}”")).to_be_visible()
    request = page.get_by_role("region", name="Request")
    expect(request).to_contain_text(device["user_code"])
    expect(request).to_contain_text("127.0.0.1, just now")
    expect(request.get_by_role("listitem")).to_have_text(
        [
            "See your Spotify data, such as playlists and what is playing",
            "See your username and email address",
        ]
    )
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    password = page.get_by_label("Your password, to approve")
    password.fill("not this one")
    password.press("Enter")
    expect(password).to_have_accessible_description("This is not your password.")
    expect(password).to_be_focused()
    password.fill(PASSWORD)
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status").filter(has_text="Go back to your device")).to_be_visible()
    assert status_with(api, poll(api, device)["access_token"]) == 200

    page.get_by_role("main").get_by_role("link", name="Access tokens").click()
    expect(page.get_by_role("button", name=f"Revoke {'x' * 60}")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_device_is_denied_or_its_code_does_not_work(
    page: Page, new_person: NewPerson, api: Server, spa: Pages
) -> None:
    sign_up(page, spa)
    go_to(page, "Account")
    page.get_by_role("link", name="Connect a device").click()
    device = start_device(api)
    code, proceed = page.get_by_label("Code"), page.get_by_role("button", name="Continue")
    for wrong in ("", "BBBB-BBBB", "a/../b?"):
        code.fill(wrong)
        proceed.click()
        expect(code).to_have_accessible_description(re.compile("This code is invalid or has expired."))
        expect(code).to_be_focused()
    code.fill(device["user_code"].lower().replace("-", " "))
    proceed.click()
    expect(page.get_by_role("region", name="Request")).to_contain_text(device["user_code"])

    other = new_person()  # cannot decide what someone else has looked up
    sign_up(other, spa, "eve")
    other.goto(device["verification_uri_complete"])
    other.get_by_role("button", name="Continue").click()
    expect(other.get_by_label("Code")).to_have_accessible_description(re.compile("This code is invalid"))

    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("status").filter(has_text="You denied access.")).to_be_visible()
    assert poll(api, device)["error"] == "access_denied"
    page.get_by_role("button", name="Enter another code").click()
    expect(code).to_have_value("")
