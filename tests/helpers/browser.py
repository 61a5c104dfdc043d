"""The browser that tests use."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

from tests.helpers.servers import LONG, Unavailable

# For whatever a page should do soon.
TIMEOUT_MS = LONG * 1000
expect.set_options(timeout=TIMEOUT_MS)  # otherwise, 5 s

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run a headless Chromium without background requests."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def chromium_path() -> str:
    """Return the path of Chromium.

    Raises:
        Unavailable: It is not installed.
    """
    path = shutil.which("chromium")
    if path is None:
        raise Unavailable("chromium is not installed: apt-get install chromium")
    return path
