"""The calls of spotify-web-api-node and @spotify/web-api-ts-sdk, which programs in tests/node make."""

import json

from tests.clients.recording import Run, Target, parse_run
from tests.clients.world import FAILURES, ITEMS
from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install, run
from tests.helpers.servers import Unavailable

# Public methods that are not called, and why.
_CREDENTIALS = ("AccessToken", "ClientId", "ClientSecret", "Credentials", "RedirectURI", "RefreshToken")
NOT_CALLED_BY_WEB_API_NODE = {
    **{f"{change}{name}": "sends nothing" for change in ("get", "set", "reset") for name in _CREDENTIALS},
    "createAuthorizeURL": "sends nothing",
    "authorizationCodeGrant": "calls the accounts service",
    "clientCredentialsGrant": "calls the accounts service",
    "refreshAccessToken": "calls the accounts service",
}
NOT_CALLED_BY_TS_SDK = dict.fromkeys(
    ("authenticate", "getAccessToken", "initializeSdk", "logOut", "switchAuthenticationStrategy"),
    "sends nothing to the Web API",
)


def run_program(program: str, *arguments: str) -> str:
    """Run a program in tests/node, and return its output. Skips the test if there is no Node."""
    try:
        install(TEST_PACKAGES)
    except Unavailable as error:
        cannot_run(error)
    return run(TEST_PACKAGES, "node", program, *arguments)


def record(program: str, target: Target) -> Run:
    """Make all calls of a program in tests/node."""
    argument = {
        "base_url": target.base_url,
        "token": target.token,
        "control_url": f"{target.sandbox.url}/_sandbox",
        "items": ITEMS,
        "failures": FAILURES,
    }
    return parse_run(run_program(program, json.dumps(argument)), target)
