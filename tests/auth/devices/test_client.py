"""An OAuth client that we did not write completes the device authorization grant over HTTP."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import requests
from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]
from authlib.integrations.requests_client import OAuth2Session  # type: ignore[import-untyped]

from app.auth.devices.flow import GRANT_TYPE
from tests.helpers.flows import PASSWORD
from tests.helpers.servers import Server

pytestmark = pytest.mark.sqlite_only


def poll_until_decided(client: Any, url: str, started: dict[str, Any], sleep: Callable[[int], None]) -> Any:
    """Poll as in RFC 8628 section 3.5 and Authlib's documentation."""
    interval = started["interval"]
    while True:
        try:
            return client.fetch_token(url, grant_type=GRANT_TYPE, device_code=started["device_code"])
        except AuthlibBaseError as error:
            if error.error == "slow_down":
                interval += 5
            elif error.error != "authorization_pending":
                raise
        sleep(interval)


@pytest.fixture
def client() -> Any:
    return OAuth2Session(client_id="my-cli", token_endpoint_auth_method="none")


def start(client: Any, url: str) -> dict[str, Any]:
    form = {"client_id": "my-cli", "client_name": "my-cli", "scope": "account:read spotify:read"}
    started: dict[str, Any] = client.post(
        f"{url}/api/oauth/device_authorization", data=form, withhold_token=True
    ).json()
    return started


def register(url: str) -> requests.Session:
    person = requests.Session()
    person.headers["X-Requested-With"] = "test"
    new = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    assert person.post(f"{url}/api/register", json=new).status_code == 201
    return person


def test_authlib_obtains_a_token_and_uses_it_and_learns_of_a_denial(
    server: Callable[..., AbstractContextManager[Server]], client: Any
) -> None:
    with server(workers=1) as api:
        person = register(api.url)
        started = start(client, api.url)
        devices = f"{api.url}/api/user/devices"
        slept: list[int] = []

        def approve_meanwhile(seconds: int) -> None:
            """Stand for the time in which the person decides, after the device has polled too often."""
            slept.append(seconds)
            if slept[-1] > slept[0]:
                code = started["verification_uri_complete"].partition("?code=")[2]
                decision = {"decision": "approve", "current_password": PASSWORD}
                assert person.get(f"{devices}/{code}").json()["client_name"] == "my-cli"
                assert person.post(f"{devices}/{code}", json=decision).status_code == 204

        token = poll_until_decided(client, f"{api.url}/api/oauth/token", started, approve_meanwhile)

        user = client.get(f"{api.url}/api/user")
        assert slept[-1] == 10
        assert set(slept[:-1]) == {5}
        assert (token["token_type"], token["scope"]) == ("Bearer", "spotify:read account:read")
        assert (user.status_code, user.json()["username"]) == (200, "ada")

        started = start(client, api.url)
        code = started["user_code"].lower()
        assert person.post(f"{devices}/{code}", json={"decision": "deny"}).status_code == 204
        with pytest.raises(AuthlibBaseError) as denied:
            poll_until_decided(
                client, f"{api.url}/api/oauth/token", started, lambda _: pytest.fail("it was pending")
            )
        assert denied.value.error == "access_denied"
