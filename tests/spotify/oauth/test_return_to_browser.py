"""A page that `return_to` accepts stays on the app's origin, as Chromium reads URLs."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from app.spotify.oauth.return_to import RESERVED, is_return_to, without_reserved
from tests.spotify.oauth.test_return_to import FOREIGN

ORIGIN = "https://app.example.com"

# Resolve the text as an app may: as it is, its path alone, and both once more. Percent-encoded, as in a link.
RESOLVE = """([text, origin]) => {
    const first = new URL(text, origin), path = new URL(first.pathname, origin);
    const again = new URL(first.pathname + first.search, origin);
    return {
        origins: [first, path, again].map((url) => url.origin),
        href: first.href,
        again: again.href,
        names: [...first.searchParams.keys()],
    };
}"""
CHARACTERS = "/\\.?&=#@:%+;[]|'^`{} a\t\n\r\0ü\u2028\uff0f"
WORDS = "// .. %2f %5C %2e %09 %00 %c0%af evil.example javascript: https: spotify %73potify code state error"
PIECES = st.sampled_from([*CHARACTERS, *WORDS.split()])
TEXTS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join).map(lambda text: f"/{text}"),
    st.lists(PIECES, max_size=12).map("".join),
    st.text(max_size=30),
)


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    yield context.new_page()
    context.close()


def resolve(page: Page, text: str) -> dict[str, Any]:
    resolved: dict[str, Any] = page.evaluate(RESOLVE, [text, ORIGIN])
    return resolved


@pytest.mark.requirement("D4")
@settings(max_examples=500)
@example(text="/?a&?spotify=connected")
@example(text="/??spotify=connected")
@given(text=TEXTS)
def test_accepted_page_stays_on_the_origin(page: Page, text: str) -> None:
    if not is_return_to(text):
        return
    cleaned = without_reserved(text)

    resolved = resolve(page, cleaned)

    assert resolved["origins"] == [ORIGIN] * 3
    assert resolved["href"] == resolved["again"]
    # The browser encodes some characters, and interprets nothing.
    assert unquote(resolved["href"]) == f"{ORIGIN}{unquote(cleaned)}"
    assert RESERVED.isdisjoint(name.lstrip("?").strip() for name in resolved["names"])


def test_attempts_would_succeed_without_the_check(page: Page) -> None:
    """The table of attempts has texts that a browser does resolve to other origins."""
    resolved = (resolve(page, text) for name, text in FOREIGN.items() if name != "very long query")

    assert sum(found["origins"] != [ORIGIN] * 3 for found in resolved) > 15
