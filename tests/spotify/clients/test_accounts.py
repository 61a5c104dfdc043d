"""What applications send to the accounts service: with a secret, and without one."""

import pytest

from app.infra.http_client import HttpClient
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.application import Application
from app.spotify.clients.errors import Misconfigured
from config import Config
from tests.conftest import SETTINGS
from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET, SandboxClient, callback_query

VERIFIER = "a-verifier-of-at-least-forty-three-characters"


@pytest.fixture
def accounts(sandbox: SandboxClient) -> SpotifyAccounts:
    return SpotifyAccounts(Config.from_env({**SETTINGS, "SPOTIFY_ACCOUNTS_URL": sandbox.url}), HttpClient())


@pytest.mark.parametrize(("secret", "sent_by"), [(CLIENT_SECRET, "basic"), (None, "none")])
def test_code_and_refresh_token_are_sent_with_the_credentials_of_the_application(
    accounts: SpotifyAccounts, sandbox: SandboxClient, secret: str | None, sent_by: str
) -> None:
    application = Application(CLIENT_ID, secret)
    url = accounts.authorize_url(application, state="state", verifier=VERIFIER)
    code = callback_query(sandbox.consent(url))["code"]

    granted = accounts.exchange(application, code, verifier=VERIFIER)
    assert granted.refresh_token is not None
    accounts.refresh(application, granted.refresh_token)

    assert [call["client_auth"] for call in sandbox.calls("/api/token")] == [sent_by] * 2


def test_application_is_checked_without_a_person(accounts: SpotifyAccounts) -> None:
    accounts.check_client(Application(CLIENT_ID, CLIENT_SECRET))

    for application in (Application(CLIENT_ID, "wrong"), Application("wrong", CLIENT_SECRET)):
        with pytest.raises(Misconfigured, match="invalid_client"):
            accounts.check_client(application)


def test_secret_is_not_shown() -> None:
    assert CLIENT_SECRET not in repr(Application(CLIENT_ID, CLIENT_SECRET))
