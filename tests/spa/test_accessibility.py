"""axe-core on the pages of the Vue app, in both color schemes."""

from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.helpers.servers import Server
from tests.spa.flows import connect, go_to, sign_up
from tests.spa.pages import Pages

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def violations(page: Page) -> str:
    """Return what axe-core finds on the page as it is."""
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    results = Axe().run(page, options={"resultTypes": ["violations"], **RULES})
    return str(results.generate_report()) if results.violations_count else ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(page: Page, api: Server, spa: Pages, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found = {}
    for path in ("/sign-in", "/sign-up", "/forgotten-password", "/nothing"):
        page.goto(f"{spa.origin}{path}")
        found[path] = violations(page)
    sign_up(page, spa, name=f"ada-{scheme}")
    found["/"] = violations(page)
    connect(page)
    for name in ("Now playing", "Playlists", "Top tracks", "Account"):
        go_to(page, name)
        page.wait_for_load_state("networkidle")
        found[name] = violations(page)
    for path in ("/device", "/account/spotify-app"):
        page.goto(f"{spa.origin}{path}")
        page.wait_for_load_state("networkidle")
        found[path] = violations(page)
    assert "".join(found.values()) == ""
