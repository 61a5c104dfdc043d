"""The browser's protection of the app: its cookie, and pages of other sites."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import cannot_run, start
from tests.helpers.browser import FLAGS, TIMEOUT_MS, chromium_path
from tests.helpers.servers import Nginx, Server, Unavailable, find_program, make_certificate, running_nginx
from tests.spa.conftest import NewPerson
from tests.spa.flows import connect, expect_connected, go_to, sign_out, sign_up
from tests.spa.pages import Pages, serving

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# What a script of another site can try: reads, and writes with a header that needs a preflight.
REQUEST_SCRIPT = """
async ([method, url, headers]) => {
  try {
    const response = await fetch(url, {method, credentials: "include", headers});
    return response.status;
  } catch {
    return "blocked";
  }
}
"""


def cookies_of(page: Page) -> dict[str, dict[str, Any]]:
    return {cookie["name"]: dict(cookie) for cookie in page.context.cookies()}


def test_cookie_is_out_of_reach_and_gone_after_sign_out(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    cookie = cookies_of(page)["backline_session"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    assert page.evaluate("document.cookie") == ""
    sign_out(page)
    assert cookies_of(page) == {}


APP_HOST = "app.example.com"


def test_cookie_has_the_host_prefix_over_https(
    chromium: Browser,
    dist: Path,
    tmp_path: Path,
    server: Callable[..., AbstractContextManager[Server]],
) -> None:
    """App and API on two hosts of one site, with nginx in front of the API."""
    with ExitStack() as stack:
        try:
            make_certificate(find_program("openssl", "openssl"), tmp_path, f"DNS:{APP_HOST}")
        except Unavailable as error:
            cannot_run(error)
        spa = stack.enter_context(serving(dist, APP_HOST, tmp_path))
        secure = {
            "SESSION_COOKIE_SECURE": "true",
            "TRUSTED_PROXIES": "1",
            "TRUSTED_HOSTS": Nginx.HOST,
            "CORS_ORIGINS": spa.origin,
            "FRONTEND_URL": spa.origin,
        }
        api = stack.enter_context(server(workers=1, **secure))
        nginx = start(stack, running_nginx(api.port))
        spa.api_url = f"https://{Nginx.HOST}:{nginx.port}"
        names = f"--host-resolver-rules=MAP {APP_HOST} 127.0.0.1, MAP {Nginx.HOST} 127.0.0.1"
        browser = chromium.browser_type.launch(executable_path=chromium_path(), args=[*FLAGS, names])
        stack.callback(browser.close)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.set_default_timeout(TIMEOUT_MS)

        sign_up(page, spa)
        (name, cookie) = next(iter(cookies_of(page).items()))
        assert name == "__Host-Http-session"
        assert (cookie["secure"], cookie["httpOnly"], cookie["domain"]) == (True, True, Nginx.HOST)
        page.reload()
        expect(page.get_by_role("heading", name="Hello, ada")).to_be_visible()
        sign_out(page)
        assert cookies_of(page) == {}


def test_page_of_another_origin_can_neither_read_nor_write(
    page: Page, new_person: NewPerson, api: Server, spa: Pages, dist: Path
) -> None:
    sign_up(page, spa)
    connect(page)
    with serving(dist) as other:
        foreign = page.context.new_page()
        other.api_url = api.url
        foreign.goto(f"{other.origin}/icon.svg")  # a page without our policy
        for method, path, headers in (
            ("GET", "/api/user", {}),
            ("GET", "/api/spotify/token", {}),
            ("GET", "/api/spotify/v1/me/player", {}),
            ("POST", "/api/logout", {}),
            ("POST", "/api/logout", {"X-Requested-With": "me"}),
            ("DELETE", "/api/spotify", {"X-Requested-With": "me"}),
            ("POST", "/api/spotify/v1/me/player/next", {"X-Requested-With": "me"}),
        ):
            assert foreign.evaluate(REQUEST_SCRIPT, [method, f"{api.url}{path}", headers]) == "blocked", (
                method,
                path,
            )

        # On an origin that the API does not allow, the app reports the problem.
        foreign.goto(other.origin)
        expect(foreign.get_by_role("alert")).to_contain_text("The server is not responding")
    page.reload()
    expect_connected(page)
    go_to(page, "Now playing")
    expect(page.get_by_role("link", name="Gull Street")).to_be_visible()


def test_app_reports_a_missing_api_and_recovers(page: Page, api: Server, spa: Pages) -> None:
    sign_up(page, spa)
    page.route(f"{api.url}/**", lambda route: route.abort())
    page.goto(f"{spa.origin}/account")
    expect(page.get_by_role("alert")).to_contain_text("The server is not responding")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Account")).to_be_visible()
