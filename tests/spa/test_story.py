"""The app in a real browser, with the API on another origin."""

import re
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import msgspec
import pytest
import redis
import sqlalchemy as sa
from playwright.sync_api import Page, Route, expect

from app.infra.redis_cipher import RedisCipher
from app.web.sessions.data import decode, encode
from tests.conftest import SETTINGS
from tests.helpers.flows import PASSWORD
from tests.helpers.mail_server import Mailbox, token_in
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server
from tests.spa.conftest import NewPerson, StartApi
from tests.spa.flows import (
    agree,
    connect,
    disconnect,
    expect_connected,
    go_to,
    sign_in,
    sign_out,
    sign_up,
    start_device,
)
from tests.spa.pages import Pages

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_person_signs_up_connects_and_returns(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)
    expect(page).to_have_url(f"{spa.origin}/")  # the result is shown once, and removed from the URL
    expect_connected(page)

    go_to(page, "Now playing")
    expect(page.get_by_role("link", name="Gull Street")).to_be_visible()
    expect(page.get_by_role("img", name="Cover of Tidewriting")).to_have_js_property("complete", value=True)
    assert page.get_by_role("img", name="Cover of Tidewriting").evaluate("image => image.naturalWidth") > 0
    progress = page.get_by_role("progressbar", name="Progress")
    expect(progress).not_to_have_attribute("value", progress.get_attribute("value") or "")  # it moves
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("link", name="Every Rope Has a Name")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    page.get_by_role("button", name="Mira's phone").click()
    expect(page.get_by_role("button", name="Mira's phone")).to_contain_text("Playing here")

    sign_out(page)
    page.get_by_role("main").get_by_role("link", name="Sign in").click()
    sign_in(page)
    expect_connected(page)


def test_reload_changes_nothing_and_stores_nothing(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)
    go_to(page, "Account")
    page.reload()
    expect(page.get_by_role("heading", name="Account")).to_be_visible()
    expect(page.get_by_text("This device")).to_be_visible()
    stored = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert page.evaluate(stored) == [0, 0, ""]
    assert page.evaluate("indexedDB.databases()") == []


def test_tabs_share_changes(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    other = page.context.new_page()
    other.goto(spa.origin)
    expect(other.get_by_role("button", name="Connect Spotify")).to_be_visible()
    connect(page)
    other.bring_to_front()
    expect_connected(other)

    go_to(other, "Account")
    sign_out(page)
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(f"{spa.origin}/sign-in")
    sign_in(other)
    expect(other.get_by_role("heading", name="Account")).to_be_visible()
    expect(page.get_by_role("heading", name="Hello, ada")).to_be_visible()


def test_declined_consent_is_reported(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    page.get_by_role("button", name="Connect Spotify").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="Spotify was not connected")).to_be_visible()
    expect(page).to_have_url(f"{spa.origin}/")
    connect(page)
    expect_connected(page)


def test_revoked_connection_can_be_renewed(
    page: Page, api: Server, spa: Pages, sandbox: SandboxClient
) -> None:
    sign_up(page, spa)
    connect(page)
    sandbox.revoke("mira_t_42")
    sandbox.expire_access_tokens()
    go_to(page, "Top tracks")
    expect(page.get_by_role("alert")).to_contain_text("Spotify needs your consent again")
    go_to(page, "Home")  # which also offers it while the grant is suspect
    page.reload()
    expect(page.get_by_role("region", name="Spotify")).to_contain_text("Checking")
    connect(page, "Connect again")
    go_to(page, "Top tracks")
    expect(page.get_by_role("listitem").first).to_be_visible()


def test_ended_session_returns_to_its_page_after_sign_in(
    page: Page, api: Server, spa: Pages, redis_url: str
) -> None:
    sign_up(page, spa)
    connect(page)
    go_to(page, "Now playing")
    expect(page.get_by_role("button", name="Next")).to_be_enabled()
    polls = "**/api/spotify/v1/me/player?*"
    page.route(polls, lambda _route: None)  # no response: the click must detect it first
    with page.expect_request(polls):
        pass
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Your session has ended.")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    sign_in(page)
    expect(page.get_by_role("button", name="Next")).to_be_enabled()
    expect(page).to_have_url(f"{spa.origin}/now-playing")

    go_to(page, "Home")
    disconnect(page)
    page.context.set_offline(True)
    page.get_by_role("button", name="Connect Spotify").click()
    offline = page.get_by_text("The app continues when you are back online.")
    expect(offline).to_be_visible()
    page.context.set_offline(False)
    expect(offline).to_have_count(0)
    page.context.clear_cookies()
    page.get_by_role("button", name="Connect Spotify").click()
    expect(page.get_by_role("heading", name="Your music")).to_be_visible()  # and no visitor is connected


def test_double_click_connects_once(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    begun: list[str] = []
    page.on("request", lambda sent: begun.append(sent.url) if "/api/spotify/authorize" in sent.url else None)
    page.get_by_role("button", name="Connect Spotify").dblclick()
    agree(page)
    expect_connected(page)
    assert [url for url in begun if "code=" not in url and "OPTIONS" not in url] == [
        f"{api.url}/api/spotify/authorize?return_to=%2F"
    ]


def test_back_button_after_the_callback_is_harmless(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)
    expect_connected(page)
    page.go_back()
    page.get_by_role("button", name="Agree").wait_for()
    page.goto(spa.origin)
    expect_connected(page)


def test_connecting_can_start_again_after_the_back_button(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    page.get_by_role("button", name="Connect Spotify").click()
    page.get_by_role("button", name="Agree").wait_for()
    page.go_back()
    connect(page)
    expect_connected(page)


def test_page_stays_useful_during_a_spotify_outage(
    page: Page, start_api: StartApi, spa: Pages, sandbox: SandboxClient
) -> None:
    start_api()
    sign_up(page, spa)
    connect(page)
    go_to(page, "Now playing")
    expect(page.get_by_role("link", name="Gull Street")).to_be_visible()
    sandbox.settings(outage=True)
    expect(page.get_by_role("alert")).to_contain_text("Spotify is not responding")
    expect(page.get_by_role("link", name="Gull Street")).to_be_visible()
    go_to(page, "Account")
    expect(page.get_by_text("This device")).to_be_visible()
    go_to(page, "Home")
    expect_connected(page)
    sandbox.settings(outage=False)
    go_to(page, "Now playing")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()  # without a click
    expect(page.get_by_role("alert")).to_have_count(0)


def test_expiring_consent_is_shown_and_renewed(
    page: Page, api: Server, spa: Pages, database_url: str
) -> None:
    sign_up(page, spa)
    connect(page)
    expect(page.get_by_role("button", name="Connect again")).to_have_count(0)
    engine = sa.create_engine(database_url)
    with engine.begin() as db:
        db.execute(sa.text("UPDATE access_tokens SET authorized_at = datetime('now', '-170 days')"))
    engine.dispose()
    page.reload()
    expect(page.get_by_role("region", name="Spotify")).to_contain_text(re.compile(r"ends in \d+ days"))
    page.get_by_role("button", name="Connect again").click()
    page.get_by_role("button", name="Cancel").click()  # canceling keeps the connection
    expect(page.get_by_role("button", name="Disconnect Spotify")).to_be_visible()
    connect(page, "Connect again")
    expect(page.get_by_role("button", name="Connect again")).to_have_count(0)
    expect_connected(page)
    with engine.begin() as db:  # as if it was imported
        db.execute(sa.text("UPDATE access_tokens SET undated_grant_id = grant_id"))
    engine.dispose()
    page.reload()
    expect(page.get_by_role("region", name="Spotify")).to_contain_text("unknown when your access ends")
    connect(page, "Connect again")
    expect(page.get_by_role("button", name="Connect again")).to_have_count(0)


def test_spotify_can_be_disconnected(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)
    disconnect(page)
    expect(page.get_by_role("heading", name="Spotify", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name="Connect Spotify")).to_be_visible()


LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk"


def with_long_names(value: Any) -> Any:
    """Give every object in a response the same long name."""
    if isinstance(value, list):
        return [with_long_names(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: LONG if key == "name" else with_long_names(part) for key, part in value.items()}


def test_long_word_does_not_widen_a_page(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)

    def change(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=with_long_names(response.json()))

    page.route("**/api/spotify/v1/**", change)
    page.set_viewport_size({"width": 320, "height": 640})
    for name in ("Now playing", "Playlists", "Top tracks"):
        go_to(page, name)
        expect(page.get_by_text(LONG).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320, name
    page.unroute_all(behavior="wait")


def test_playlists_open_in_every_mode(page: Page, api: Server, spa: Pages, sandbox: SandboxClient) -> None:
    sign_up(page, spa)
    connect(page)
    for mode in ("dev2026", "transition", "legacy"):
        sandbox.settings(mode=mode)
        go_to(page, "Playlists")
        expect(page.get_by_role("link", name="Rainy tram Mira T. · 11 tracks")).to_be_visible()
        page.get_by_role("link", name="Rainy tram Mira T.").click()
        expect(page.get_by_role("heading", name="Rainy tram")).to_be_focused()
        expect(page.get_by_role("listitem")).to_have_count(11)
        expect(page.get_by_text("No longer available")).to_be_visible()
        assert "https://open.spotify.com/track/" in str(
            page.get_by_role("link", name="Harbour Lights").get_attribute("href")
        )
        page.goto(spa.origin)


def test_spotify_can_redirect_to_the_app(page: Page, spa: Pages, start_api: StartApi) -> None:
    start_api(SPOTIFY_REDIRECT_URI=f"{spa.origin}/callback")
    sign_up(page, spa)
    page.goto(f"{spa.origin}/callback")  # without parameters, it claims no success
    expect(page.get_by_text("Nothing was changed. Please connect again.")).to_be_visible()
    connect(page)
    expect_connected(page)
    expect(page).to_have_url(f"{spa.origin}/")
    save_a_track(page, spa)


def test_saving_asks_for_the_permission_and_returns(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page)
    save_a_track(page, spa)


def test_person_signs_in_with_spotify(page: Page, api: Server, spa: Pages, redis_url: str) -> None:
    device = start_device(api)
    with_spotify = page.get_by_role("button", name="Continue with Spotify")
    page.goto(f"{device['verification_uri_complete']}#top")
    with_spotify.click()
    agree(page)
    expect(page.get_by_label("Code")).to_have_value(device["user_code"])
    expect(page).to_have_url(f"{device['verification_uri_complete']}#top")
    age_sign_ins(redis_url)
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Approve").click()
    with_spotify.click()  # in place of a password
    agree(page)
    expect(page.get_by_label("Code")).to_have_value(device["user_code"])

    go_to(page, "Account")
    expect(page.get_by_role("region", name="Ways to sign in")).to_contain_text("As Mira T.")
    expect(page.get_by_label("Email")).to_have_value("")
    go_to(page, "Home")
    page.get_by_role("button", name="Disconnect Spotify").click()
    expect(page.get_by_role("alert")).to_contain_text("This is your only way to sign in")
    expect(page.get_by_role("button", name="Disconnect Spotify")).to_be_focused()
    page.get_by_role("link", name="Your account").click()
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Choose password").click()
    expect(page.get_by_text("Your password has been changed.")).to_be_visible()
    expect(page.get_by_label("Current password", exact=True)).to_be_visible()
    go_to(page, "Home")
    button = page.get_by_role("button", name="Disconnect Spotify")
    button.click()
    question = page.get_by_role("group", name="You will no longer sign in with Spotify")
    expect(question).to_be_focused()
    question.get_by_role("button", name="Stay connected").click()
    expect(button).to_be_focused()
    disconnect(page)

    # As the question says, the same Spotify account now creates another account.
    sign_out(page)
    page.goto(f"{spa.origin}/sign-in")
    page.get_by_role("button", name="Continue with Spotify").click()
    agree(page)
    expect(page.get_by_role("heading", name=re.compile("Hello, mira-t-"))).to_be_visible()
    sign_out(page)
    page.goto(f"{spa.origin}/sign-in")
    sign_in(page, name="mira-t")
    expect(page.get_by_role("heading", name="Hello, mira-t", exact=True)).to_be_visible()
    page.get_by_role("button", name="Connect Spotify").click()
    agree(page)
    expect(page.get_by_text("sign in to it, and disconnect Spotify")).to_be_visible()
    page.goto(f"{spa.origin}/?spotify=error-invalid-credentials")
    expect(page.get_by_text("Its account here is disabled.")).to_be_visible()


def save_a_track(page: Page, spa: Pages) -> None:
    """Save a track for the first time, which needs another consent."""
    go_to(page, "Top tracks")
    save = page.get_by_role("listitem").first.get_by_role("button", name="Save")
    name = str(save.get_attribute("aria-label")).removeprefix("Save ")
    save.click()
    expect(page.get_by_text("Add and remove things in Your Library")).to_be_visible()
    agree(page)
    expect(page.get_by_text("Spotify is connected.")).to_be_visible()
    expect(page).to_have_url(f"{spa.origin}/top-tracks")
    save.click()
    expect(page.get_by_text(f"{name} is in Your Library.")).to_be_visible()
    expect(page.get_by_role("button", name=f"{name} is saved")).to_be_focused()


def link_in(mail: EmailMessage, spa: Pages) -> str:
    """Return the link in an email, which leads to the app."""
    token_in(mail)
    found = re.search(r"https?://\S+#\S+", mail.get_content())
    assert found
    assert found[0].startswith(spa.origin)
    return found[0]


def test_forgotten_password_is_reset_by_email(
    page: Page, mailbox: Mailbox, start_api: StartApi, spa: Pages
) -> None:
    start_api()
    sign_up(page, spa)
    page.goto(link_in(mailbox.wait_for("ada@example.com", "Confirm your email address"), spa))
    expect(page).to_have_url(f"{spa.origin}/verify-email")
    # Opening the link alone verifies nothing: mail scanners open links too.
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_text("ada@example.com is not verified yet.")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Verify my address").click()
    expect(page.get_by_text("Your email address is verified.")).to_be_visible()
    sign_out(page)

    page.goto(f"{spa.origin}/sign-in")
    page.get_by_role("link", name="Forgot your password?").click()
    page.get_by_label("Email").fill("ada@example.com")
    page.get_by_role("button", name="Send link").click()
    expect(page.get_by_text("we sent it an email with a link")).to_be_visible()
    page.goto(link_in(mailbox.wait_for("ada@example.com", "Reset your password"), spa))
    expect(page).to_have_url(f"{spa.origin}/new-password")
    page.get_by_label("New password", exact=True).fill("another long sentence")
    page.get_by_role("button", name="Set new password").click()
    expect(page.get_by_text("Your password has been changed.")).to_be_visible()
    sign_in(page, password="another long sentence")
    expect(page.get_by_role("heading", name="Hello, ada")).to_be_visible()


def test_session_of_another_device_can_be_ended(
    page: Page, new_person: NewPerson, api: Server, spa: Pages
) -> None:
    sign_up(page, spa)
    elsewhere = new_person()
    elsewhere.goto(f"{spa.origin}/account")
    sign_in(elsewhere)
    expect(elsewhere.get_by_role("heading", name="Account")).to_be_visible()
    go_to(page, "Account")
    page.get_by_role("button", name="End the session").click()
    expect(page.get_by_text("No other sessions.")).to_be_visible()
    elsewhere.get_by_role("button", name="Save profile").click()
    expect(elsewhere.get_by_text("Your session has ended.")).to_be_visible()


def test_ending_sessions_asks_for_the_password_after_15_minutes(
    page: Page, new_person: NewPerson, api: Server, spa: Pages, redis_url: str
) -> None:
    sign_up(page, spa)
    elsewhere = new_person()
    elsewhere.goto(f"{spa.origin}/account")
    sign_in(elsewhere)
    expect(elsewhere.get_by_role("heading", name="Account")).to_be_visible()
    age_sign_ins(redis_url)
    go_to(page, "Account")
    page.get_by_role("button", name="End all others").click()
    field = page.get_by_label("Your password", exact=True)
    expect(field).to_be_focused()
    field.fill("not this one")
    page.get_by_role("button", name="Continue").click()
    expect(field).to_have_accessible_description("This is not your password.")
    field.fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("No other sessions.")).to_be_visible()
    expect(field).to_have_count(0)


def age_sign_ins(redis_url: str) -> None:
    """Move the time of all sign-ins into the past."""
    cipher = RedisCipher(SETTINGS["SECRET_KEY"])
    with redis.Redis.from_url(redis_url) as store:
        for key in store.scan_iter("session:*"):
            data = decode(cipher, key.decode(), store.get(key))
            assert data is not None
            aged = msgspec.structs.replace(data, signed_in_at=0)
            store.set(key, encode(cipher, key.decode(), aged), keepttl=True)


def test_new_address_waits_for_verification_and_can_be_undone(
    page: Page, mailbox: Mailbox, start_api: StartApi, spa: Pages
) -> None:
    start_api()
    sign_up(page, spa)
    page.goto(link_in(mailbox.wait_for("ada@example.com", "Confirm your email address"), spa))
    page.get_by_role("button", name="Verify my address").click()
    expect(page.get_by_text("Your email address is verified.")).to_be_visible()
    go_to(page, "Account")
    page.get_by_label("Email").fill("thief@example.com")
    page.get_by_label("Your password (to change the address)").fill(PASSWORD)
    page.get_by_role("button", name="Save profile").click()
    expect(
        page.get_by_text("thief@example.com replaces ada@example.com as soon as you verify it.")
    ).to_be_visible()
    expect(page.get_by_label("Email")).to_have_value("ada@example.com")
    page.get_by_label("Username").fill("ada2")
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        page.get_by_role("button", name="Save profile").click()
    page.reload()
    expect(page.get_by_label("Username")).to_have_value("ada2")
    expect(page.get_by_text("thief@example.com replaces ada@example.com as soon as")).to_be_visible()

    page.goto(link_in(mailbox.wait_for("ada@example.com", "about to change"), spa))
    page.get_by_role("button", name="Undo the change").click()
    expect(page.get_by_text("Your old email address is back")).to_be_visible()
    page.goto(link_in(mailbox.wait_for("ada@example.com", "new password"), spa))
    page.get_by_label("New password", exact=True).fill("another long sentence")
    page.get_by_role("button", name="Set new password").click()
    sign_in(page, "ada2", password="another long sentence")
    go_to(page, "Account")
    expect(page.get_by_label("Email")).to_have_value("ada@example.com")
    expect(page.get_by_text("replaces ada@example.com")).to_have_count(0)


def test_account_can_be_exported_and_deleted(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    go_to(page, "Account")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download my data").click()
    assert '"username": "ada"' in download.value.path().read_text()
    page.get_by_role("button", name="Delete my account").click()
    expect(page.get_by_label("Your password, to confirm")).to_be_focused()
    page.get_by_label("Your password, to confirm").fill("not this one")
    page.get_by_role("button", name="Delete permanently").click()
    field = page.get_by_label("Your password, to confirm")
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description("This is not your password.")
    page.get_by_label("Your password, to confirm").fill(PASSWORD)
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_text("Your account and all its data are deleted.")).to_be_visible()
    page.goto(f"{spa.origin}/account")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_validation_error_is_shown_at_its_field(page: Page, api: Server, spa: Pages) -> None:
    page.goto(f"{spa.origin}/sign-up")
    page.get_by_label("Username").fill("a")
    page.get_by_label("Email").fill("ada@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    field = page.get_by_label("Username")
    expect(field).to_have_accessible_description(re.compile("2 to 64 letters"))
    expect(field).to_be_focused()


def test_pause_counts_down(page: Page, api: Server, spa: Pages) -> None:
    now = datetime.now(UTC)
    page.clock.set_fixed_time(now)  # a slow machine might miss a pause of one second
    page.goto(f"{spa.origin}/sign-in")
    for _ in range(30):  # the pauses double, so a slow machine may see a later one
        sign_in(page, password="guessing")
        expect(page.get_by_role("button", name="Sign in")).to_be_enabled()
        if "Too many attempts" in page.get_by_role("alert").inner_text():
            break
    expect(page.get_by_role("alert")).to_contain_text("Too many attempts")
    expect(page.get_by_role("timer")).to_contain_text(re.compile(r"in \d+ s"))
    page.clock.set_fixed_time(now + timedelta(minutes=1))
    expect(page.get_by_role("timer")).to_have_count(0)


def test_taken_name_is_shown_at_its_field(page: Page, new_person: NewPerson, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    other = new_person()
    other.goto(f"{spa.origin}/sign-up")
    name = other.get_by_label("Username")
    name.fill("ada")
    other.get_by_label("Email").fill("other@example.com")
    other.get_by_label("Password", exact=True).fill(PASSWORD)
    other.get_by_role("button", name="Create account").click()
    expect(name).to_have_accessible_description(re.compile("taken"))
    expect(name).to_be_focused()
    name.press("End")
    name.press_sequentially("2")
    expect(name).to_have_accessible_description("")
    name.press("Enter")
    expect(other.get_by_role("heading", name="Hello, ada2")).to_be_visible()


def test_next_page_moves_the_focus_to_its_heading(page: Page, api: Server, spa: Pages) -> None:
    page.goto(f"{spa.origin}/sign-up")
    expect(page.get_by_role("heading", name="Sign up")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_role("banner").get_by_role("link", name="Sign in").press("Enter")
    expect(page.get_by_role("heading", name="Sign in")).to_be_focused()
    expect(page).to_have_title("Sign in · Backline")


def test_page_explains_what_to_do_when_nothing_plays(
    page: Page, api: Server, spa: Pages, sandbox: SandboxClient
) -> None:
    sign_up(page, spa)
    connect(page, person="aiko-87")
    go_to(page, "Now playing")
    expect(page.get_by_text("Nothing is playing right now")).to_be_visible()
    expect(page.get_by_role("button", name="デスク")).to_contain_text("Play here")


def test_missing_premium_is_explained(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    connect(page, person="Jonas K.")
    go_to(page, "Now playing")
    page.get_by_role("button", name="Jonas's laptop").click()
    expect(page.get_by_role("alert")).to_contain_text("This needs Spotify Premium")


def test_command_can_succeed_whatever_its_response_is(
    page: Page, api: Server, spa: Pages, sandbox: SandboxClient
) -> None:
    sign_up(page, spa)
    connect(page)
    go_to(page, "Now playing")
    sandbox.fault(on="command", kind="bare_word", after_effect=True, times=None)
    with page.expect_response(lambda response: response.request.method == "PUT") as command:
        page.get_by_role("button", name="Pause").click()
    assert command.value.headers["content-type"] == "application/json"
    page.wait_for_event("response", lambda response: "/me/player?" in response.url)  # what it shows next
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)

    sandbox.clear_faults()
    sandbox.fault(on="command", kind="close", after_effect=True)
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("This may have worked anyway.")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()  # it has


EPISODE = {
    "type": "episode",
    "id": "1",
    "name": "The long way home",
    "uri": "spotify:episode:1",
    "external_urls": {"spotify": "https://open.spotify.com/episode/1"},
    "duration_ms": 1_800_000,
    "explicit": True,
    "images": None,
    "show": {"id": "2", "name": "Night trains", "uri": "spotify:show:2", "images": []},
}


def test_ads_and_episodes_are_shown(page: Page, api: Server, spa: Pages) -> None:
    """The sandbox plays only music, so the test changes its response."""
    sign_up(page, spa)
    connect(page)
    playing: dict[str, object] = {"currently_playing_type": "ad", "item": None}

    def change(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), **playing})

    page.route("**/api/spotify/v1/me/player?*", change)
    go_to(page, "Now playing")
    expect(page.get_by_text("An advertisement is playing", exact=True)).to_be_visible()
    playing |= {"currently_playing_type": "episode", "item": EPISODE}
    expect(page.get_by_text("The long way home", exact=True)).to_be_visible()  # with the next poll
    page.unroute_all(behavior="wait")
