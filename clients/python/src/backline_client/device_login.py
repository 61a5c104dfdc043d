"""The device authorization grant (RFC 8628), by which a person lends a program some of their rights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import requests

from backline_client.errors import ApiError, LoginError, members_of, raise_for_problem

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
TIMEOUT_SECONDS = 30


def request_token(url: str, client_name: str, rights: Iterable[str], show: Callable[[str], object]) -> str:
    """Ask a person for approval, and return the token.

    Raises:
        LoginError: The person denied it, or did not approve it in time, or the request is invalid.
        ApiError: The server does not offer this, or is not available.
    """
    form = {"client_name": client_name, "scope": " ".join(rights)}
    started = _members(_post(f"{url}/api/oauth/device_authorization", form))
    expires_at = time.monotonic() + started["expires_in"]
    show(
        f"Open {started['verification_uri_complete']}\n"
        f"and check that it shows the code {started['user_code']}."
    )
    return _wait_for_token(url, started["device_code"], started.get("interval", 5), expires_at)


def _wait_for_token(url: str, device_code: str, interval: float, expires_at: float) -> str:
    form = {"grant_type": GRANT_TYPE, "device_code": device_code}
    while time.monotonic() + interval < expires_at:
        time.sleep(interval)
        try:
            return str(_members(_post(f"{url}/api/oauth/token", form))["access_token"])
        except (requests.ConnectionError, requests.Timeout):
            interval *= 2  # RFC 8628 section 3.5
        except ApiError as error:
            if error.status not in (429, 502, 503, 504):
                raise
            interval *= 2
        except LoginError as error:
            if error.error not in ("authorization_pending", "slow_down", "temporarily_unavailable"):
                raise
            if error.error != "authorization_pending":
                interval += 5
    raise LoginError("expired_token", "No one approved this in time.")


def _post(url: str, form: dict[str, str]) -> requests.Response:
    return requests.post(url, data=form, timeout=TIMEOUT_SECONDS, allow_redirects=False)


def _members(response: requests.Response) -> dict[str, Any]:
    members = members_of(response)
    if isinstance(members.get("error"), str):
        raise LoginError(str(members["error"]), str(members.get("error_description", "")))
    raise_for_problem(response)
    return members
