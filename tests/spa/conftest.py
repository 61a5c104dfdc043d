"""The Vue app in a real browser, on one origin, and the API under gunicorn on another."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.conftest import FAILED, cannot_run
from tests.helpers.browser import TIMEOUT_MS
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server, Unavailable, running_server
from tests.spa.pages import ROOT, Pages, build, serving

RESULTS = ROOT / "test-results"

# Messages disappear after 8 s, which a test on a machine that stands still could miss.
KEEP_MESSAGES = """
const start = window.setTimeout;
window.setTimeout = (run, ms, ...more) => start(run, ms === 8_000 ? 60_000 : ms, ...more);
"""

NewPerson = Callable[[], Page]
StartApi = Callable[..., Server]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory, sandbox: SandboxClient) -> Path:
    """The app, built once."""
    folder = tmp_path_factory.mktemp("spa") / "dist"
    try:
        build(folder, spotify_url=sandbox.url)
    except Unavailable as error:
        cannot_run(error)
    return folder


@pytest.fixture(scope="session")
def spa(dist: Path) -> Iterator[Pages]:
    with serving(dist) as pages:
        yield pages


@pytest.fixture(scope="session")
def _shared_api(spa: Pages, shared_env: dict[str, str]) -> Iterator[Server]:
    settings = {
        **shared_env,
        "CORS_ORIGINS": spa.origin,
        "FRONTEND_URL": spa.origin,
        "SPOTIFY_APPS": "both",
        "SPOTIFY_SIGN_IN": "true",
    }
    with running_server(settings, workers=1) as running:
        yield running


@pytest.fixture
def api(spa: Pages, _shared_api: Server) -> Server:
    """The API for the app, shared by all tests."""
    spa.api_url = _shared_api.url
    return _shared_api


@pytest.fixture
def start_api(spa: Pages, server: Callable[..., AbstractContextManager[Server]]) -> Iterator[StartApi]:
    """Start an API for one test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Server:
            ours = {"CORS_ORIGINS": spa.origin, "FRONTEND_URL": spa.origin}
            running = stack.enter_context(server(workers=1, **{**ours, **settings}))
            spa.api_url = running.url
            return running

        yield start


@pytest.fixture
def new_person(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[NewPerson]:
    """Open a new browser context. Its trace is kept if the test fails."""
    opened: list[BrowserContext] = []
    errors: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "[Vue warn]" in message.text:
            errors.append(message.text)

    def open_browser() -> Page:
        context = chromium.new_context()
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(KEEP_MESSAGES)
        context.tracing.start(snapshots=True)
        context.on("console", on_console)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        opened.append(context)
        return context.new_page()

    yield open_browser
    failed = request.node.stash.get(FAILED, None)
    for number, context in enumerate(opened):
        name = f"{re.sub(r'[^a-z0-9]+', '-', request.node.name)}-{number}"
        kept = keep(context, name if failed else None)
        context.close()
        if failed and kept:
            failed.sections.append(("browser trace", f"{kept} (playwright show-trace), and screenshots"))
    assert errors == []


def keep(context: BrowserContext, name: str | None) -> Path | None:
    """Stop the recording. Under a name, save it with a screenshot of every tab."""
    if name is None:
        context.tracing.stop()
        return None
    trace = RESULTS / f"{name}.zip"
    context.tracing.stop(path=trace)
    for number, page in enumerate(context.pages):
        page.screenshot(path=RESULTS / f"{name}-{number}.png")
    return trace


@pytest.fixture
def page(new_person: NewPerson) -> Page:
    return new_person()
