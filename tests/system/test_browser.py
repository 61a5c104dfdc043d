"""A real browser, with an app on one origin and the API on another."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import TIMEOUT_MS
from tests.helpers.servers import Server, running_server

# A fetch as an SPA makes it, with credentials and the header.
CALL = """
async ([method, url, body]) => {
  try {
    const response = await fetch(url, {
      method,
      credentials: "include",
      headers: {"X-Requested-With": "spa", ...(body ? {"Content-Type": "application/json"} : {})},
      body: body ? JSON.stringify(body) : undefined,
    });
    const text = await response.text();
    return {status: response.status, json: text ? JSON.parse(text) : null};
  } catch (error) {
    return {status: 0, error: String(error)};
  }
}
"""
pytestmark = pytest.mark.sqlite_only
NEW = {"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}


@contextmanager
def pages() -> Iterator[str]:
    """Serve an empty page on its own origin. Yields the origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>app</title><link rel=icon href=data:,>")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab of a browser without cookies or history."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    yield page
    context.close()


@pytest.fixture(scope="module")
def spa() -> Iterator[str]:
    """The origin of our own app's page."""
    with pages() as origin:
        yield origin


@pytest.fixture(scope="module")
def api(spa: str, shared_env: dict[str, str]) -> Iterator[Server]:
    """The API, which accepts calls from the app's page and redirects browsers to it."""
    with running_server({**shared_env, "CORS_ORIGINS": spa, "FRONTEND_URL": f"{spa}/welcome"}) as running:
        yield running


def call(page: Page, api: Server, method: str, path: str, body: object = None) -> Any:
    return page.evaluate(CALL, [method, f"{api.url}{path}", body])


def test_session_persists_across_requests_from_another_origin(page: Page, api: Server, spa: str) -> None:
    """A common bug of SPAs: after a sign-in, the next request has no session."""
    page.goto(spa)
    assert call(page, api, "GET", "/api/session")["json"]["authenticated"] is False

    assert call(page, api, "POST", "/api/register", NEW)["status"] == 201

    assert call(page, api, "GET", "/api/user")["json"]["username"] == "ada"
    page.reload()
    assert call(page, api, "GET", "/api/session")["json"]["authenticated"] is True
    tab = page.context.new_page()
    tab.goto(spa)
    assert call(tab, api, "GET", "/api/session")["json"]["user"]["username"] == "ada"
    assert page.evaluate("document.cookie") == ""  # no script can read it

    assert call(page, api, "POST", "/api/logout")["status"] == 204
    assert page.context.cookies() == []
    assert call(tab, api, "GET", "/api/user")["status"] == 401


def test_page_of_another_site_can_neither_write_nor_read(page: Page, api: Server, spa: str) -> None:
    page.goto(spa)
    call(page, api, "POST", "/api/register", NEW)
    with pages() as evil:
        page.goto(evil)
        assert call(page, api, "GET", "/api/user")["status"] == 0
        assert call(page, api, "POST", "/api/logout")["status"] == 0
        page.evaluate(
            """(url) => new Promise((done) => {
                const frame = document.createElement("iframe");
                frame.name = "response";
                frame.onload = done;
                document.body.append(frame);
                const form = document.createElement("form");
                Object.assign(form, {method: "post", action: url, target: "response"});
                document.body.append(form);
                form.submit();
            })""",
            f"{api.url}/api/logout",
        )
    page.goto(spa)

    assert call(page, api, "GET", "/api/session")["json"]["authenticated"] is True


def follow_link(page: Page, url: str) -> None:
    """Click a link to this URL on the page that is open."""
    page.evaluate(
        """url => {
      const link = document.createElement("a");
      link.href = url;
      link.textContent = "link";
      document.body.append(link);
    }""",
        url,
    )
    page.get_by_role("link", name="link").click()


def test_another_site_can_link_to_the_app_but_not_start_an_authorization(
    page: Page, api: Server, spa: str
) -> None:
    authorize = f"{api.url}/api/spotify/authorize"
    another_site = spa.replace("127.0.0.1", "localhost")

    page.goto(another_site)
    follow_link(page, authorize)
    expect(page.get_by_text("/problems/cross-site-request")).to_be_visible()
    assert page.context.cookies() == []

    page.goto(another_site)
    follow_link(page, spa)
    page.wait_for_url(f"{spa}/")
    assert call(page, api, "GET", "/api/spotify/authorize")["json"]["status"] == "authorization_required"
    follow_link(page, authorize)
    page.wait_for_url("**/authorize?client_id=*")


def test_docs_page_can_make_calls(page: Page, api: Server) -> None:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{api.url}/api/docs?spotify=connected")

    expect(page.get_by_role("status")).to_contain_text("Spotify is connected")
    operation = page.locator(".opblock-post").filter(has_text="/api/logout")
    operation.locator("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()

    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_contain_text("204")
    assert errors == []


def test_operator_page_updates_itself(page: Page, api: Server) -> None:
    errors: list[str] = []
    loads: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda request: loads.append(request.url) if request.url.endswith("/operator") else None
    )
    now = datetime.now(UTC)
    page.clock.install(time=now)
    page.clock.pause_at(now + timedelta(hours=1))  # on a slow machine, the page would update itself once more
    page.goto(f"{api.url}/operator")
    cell = page.get_by_role("row", name="wrong password").get_by_role("cell")
    updates = page.get_by_role("checkbox", name="Update")
    before = int(cell.inner_text())

    def fail_to_sign_in() -> None:
        body = {"login": "nobody", "password": "not the password"}
        sent = page.request.post(f"{api.url}/api/login", data=body, headers={"X-Requested-With": "test"})
        assert sent.status == 401

    fail_to_sign_in()
    page.clock.fast_forward(15_000)
    expect(cell).to_have_text(str(before + 1), timeout=30_000)
    updates.uncheck()
    page.clock.fast_forward(60_000)
    updates.check()
    fail_to_sign_in()
    page.clock.fast_forward(15_000)
    expect(cell).to_have_text(str(before + 2), timeout=30_000)
    assert len(loads) == 3
    assert errors == []


def test_docs_page_can_call_spotify_through_the_gateway(page: Page, api: Server) -> None:
    page.goto(f"{api.url}/api/spotify/authorize")
    page.get_by_role("radio", name="Mira T.").check()
    page.get_by_role("button", name="Agree").click()
    page.goto(f"{api.url}/api/docs")
    operation = page.locator(".opblock-get").filter(has_text="/api/spotify/v1/")
    operation.locator("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("textbox", name="path").fill("search?q=harbour lights&type=track")
    operation.get_by_role("button", name="Execute").click()

    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
    expect(operation.locator(".request-url")).to_contain_text("/v1/search?q=harbour%20lights&type=track")
