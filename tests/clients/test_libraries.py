"""Libraries for Spotify behave through Backline as they do without it.

They are unmodified except for base URL and token. Each makes its calls twice, in the same world: directly to
the sandbox, with a token of Spotify's, and through Backline, with a personal access token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest

from tests.clients import node_calls, spotipy_calls, tekore_calls
from tests.clients.accounts import Account, direct
from tests.clients.differences import DIFFERENCES, differing, unexpected_differences
from tests.clients.recording import Run, Target
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]


@dataclass(frozen=True)
class Library:
    """A library."""

    name: str
    record: Callable[[Target], Run]
    not_called: Mapping[str, str]
    """The public methods that are not called, and why."""
    mode: str = "legacy"
    """The mode of older applications that suits it."""
    shows_bodies: bool = False
    """Whether its exceptions can have the whole body of an error, rather than Spotify's message."""


LIBRARIES = [
    Library("spotipy", spotipy_calls.record, spotipy_calls.NOT_CALLED),
    Library("tekore", tekore_calls.record, tekore_calls.NOT_CALLED, mode="transition"),
    Library(
        "spotify-web-api-node",
        partial(node_calls.record, "spotify_web_api_node.mjs"),
        node_calls.NOT_CALLED_BY_WEB_API_NODE,
        shows_bodies=True,
    ),
    Library(
        "ts-sdk",
        partial(node_calls.record, "ts_sdk.mjs"),
        node_calls.NOT_CALLED_BY_TS_SDK,
        shows_bodies=True,
    ),
]


@pytest.mark.parametrize("is_new", [False, True], ids=["older application", "new application"])
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_calls_have_the_same_outcomes_and_effects_through_backline(
    library: Library, is_new: bool, account: Account, api: Server, sandbox: SandboxClient
) -> None:
    mode = "dev2026" if is_new else library.mode
    sandbox.settings(mode=mode)
    directly = library.record(direct(sandbox))
    effects = _effects(sandbox)

    sandbox.reset()
    sandbox.settings(mode=mode)
    account.connect()
    through_backline = library.record(Target(f"{api.url}/v1", account.create_token(), sandbox))

    outcomes = directly.outcomes, through_backline.outcomes
    assert unexpected_differences(*outcomes, shows_bodies=library.shows_bodies) == {}
    assert _effects(sandbox) == effects
    assert len(effects) > 10
    if library.name == "spotify-web-api-node":  # its exceptions always have the whole body
        assert differing(*outcomes) == set(DIFFERENCES)
    if not is_new:
        assert directly.methods - directly.called == set(library.not_called)


def _effects(sandbox: SandboxClient) -> list[tuple[str, str, str, int]]:
    """Return the commands that took effect, in order. Backline drops the slash at the end of a path."""
    return [
        (call["method"], call["path"].rstrip("/"), call["query"], call["body_bytes"])
        for call in sandbox.calls()
        if call["method"] != "GET"
        and call["path"].startswith("/v1/")
        and (call["status"] is None or call["status"] < 400)
    ]
