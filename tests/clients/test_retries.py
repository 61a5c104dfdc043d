"""A command whose response is lost has one effect: no common client repeats it after 409."""

from collections.abc import Callable

import httpx
import pytest
import requests
import spotipy
import tekore
import urllib3

from tests.clients.accounts import Account
from tests.clients.node_calls import run_program
from tests.clients.world import ITEMS
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]

URI = f"spotify:track:{ITEMS['track']}"
# What tutorials recommend, for all methods.
TYPICAL = urllib3.Retry(
    3, status_forcelist=[413, 429, 500, 502, 503, 504], allowed_methods=None, raise_on_status=False
)

Send = Callable[[str, str], int]


def with_spotipy(base_url: str, token: str) -> int:
    client = spotipy.Spotify(auth=token, requests_timeout=60)
    client.prefix = f"{base_url}/"
    try:
        client.add_to_queue(URI)
    except spotipy.SpotifyException as error:
        return int(error.http_status)
    return 204


def with_tekore(base_url: str, token: str) -> int:
    http = httpx.Client(trust_env=False, timeout=60)
    sender = tekore.RetryingSender(retries=3, sender=tekore.SyncSender(http))
    request = tekore.Request(
        "POST",
        f"{base_url}/me/player/queue",
        params={"uri": URI},
        headers={"Authorization": f"Bearer {token}"},
    )
    status: int = sender.send(request).status_code
    sender.close()
    return status


def with_urllib3(retries: urllib3.Retry | int | None) -> Send:
    def send(base_url: str, token: str) -> int:
        with urllib3.PoolManager(retries=retries) as http:
            headers = {"Authorization": f"Bearer {token}"}
            return http.request("POST", f"{base_url}/me/player/queue?uri={URI}", headers=headers).status

    return send


def with_requests(base_url: str, token: str) -> int:
    with requests.Session() as http:
        http.trust_env = False
        http.mount("http://", requests.adapters.HTTPAdapter(max_retries=TYPICAL))
        url, headers = f"{base_url}/me/player/queue?uri={URI}", {"Authorization": f"Bearer {token}"}
        return http.post(url, headers=headers, timeout=60).status_code


def with_node(client: str) -> Send:
    def send(base_url: str, token: str) -> int:
        return int(run_program("retries.mjs", client, base_url, token, URI))

    return send


CLIENTS: dict[str, Send] = {
    "spotipy": with_spotipy,
    "tekore": with_tekore,
    "urllib3": with_urllib3(None),
    "urllib3, typical": with_urllib3(TYPICAL),
    "requests, typical": with_requests,
    **{
        name: with_node(name)
        for name in ("axios-retry", "axios-retry, any method", "got", "got, any method", "ts-sdk")
    },
}


@pytest.fixture
def token(account: Account, sandbox: SandboxClient) -> str:
    account.connect()
    return account.create_token()


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_do_not_repeat_a_command_with_unknown_outcome(
    client: str, token: str, api: Server, sandbox: SandboxClient
) -> None:
    sandbox.fault(on="command", kind="close", after_effect=True)

    status = CLIENTS[client](f"{api.url}/v1", token)

    assert status == 409
    assert len(sandbox.calls("/v1/me/player/queue")) == 1


@pytest.mark.parametrize("client", ["spotipy", "tekore", "requests, typical", "got, any method"])
def test_clients_repeat_what_spotify_rejects_for_now(
    client: str, token: str, api: Server, sandbox: SandboxClient
) -> None:
    """The clients above do repeat commands, so that the test above can fail."""
    sandbox.fault(on="command", kind="envoy_503")

    assert CLIENTS[client](f"{api.url}/v1", token) == 204
    assert len(sandbox.calls("/v1/me/player/queue")) == 2
