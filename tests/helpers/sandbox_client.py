"""Runs the sandbox Spotify, and controls it.

    with running_sandbox() as sandbox:
        callback = sandbox.consent(authorize_url, person="mira_t_42")

The client uses HTTP only, and imports nothing from the sandbox.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import requests

from script.supervisor import ends_with_parent

ROOT = Path(__file__).resolve().parents[2]
CLIENT_ID = "5a4db0c0ffee4b0cac1e5a4db0c0ffee"
CLIENT_SECRET = "sandbox-secret-not-for-production"
REDIRECT_URI = "http://127.0.0.1:5000/api/spotify/authorize"
TIMEOUT_S = 60


class SandboxClient:
    """Controls a running sandbox. Methods raise AssertionError if the sandbox reports an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accounts_url = url
        self.api_url = f"{url}/v1"
        self._http = requests.Session()
        self._http.trust_env = False

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Call `/_sandbox/<path>`. Returns the JSON of the response, or None if it has no body."""
        response = self._http.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=TIMEOUT_S)
        assert response.ok, f"{method} /_sandbox/{path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def reset(self) -> None:
        """Restore the initial state, and release held calls."""
        self.control("POST", "reset")

    def consent(
        self,
        authorize_url: str,
        person: str = "mira_t_42",
        decision: str = "agree",
        browser: requests.Session | None = None,
    ) -> str:
        """Decide on the consent page at `authorize_url`. Returns the callback URL.

        Pass `browser` to keep the person signed in at the sandbox between calls.
        """
        with requests.Session() as fresh:
            fresh.trust_env = False
            visitor = browser or fresh
            page = visitor.get(authorize_url, allow_redirects=False, timeout=TIMEOUT_S)
            if page.is_redirect:
                return page.headers["Location"]
            assert page.status_code == 200, f"{page.status_code} {page.text}"
            form = {"query": urlsplit(authorize_url).query, "person": person, "decision": decision}
            target = urljoin(authorize_url, "/authorize/consent")
            response = visitor.post(target, data=form, allow_redirects=False, timeout=TIMEOUT_S)
            assert response.is_redirect, f"{response.status_code} {response.text}"
            return response.headers["Location"]

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Change settings. Returns all of them."""
        settings: dict[str, Any] = self.control("PATCH", "settings", changes)
        return settings

    def fault(self, **members: Any) -> None:
        """Inject a fault into upcoming calls, such as `fault(on="refresh", kind="google_502", times=2)`.

        The default is one call; `times=None` means all until `clear_faults`. With `chance=0.1, seed=7`, it
        applies to about every tenth call, the same ones in every run.
        """
        self.control("POST", "faults", members)

    def faults(self) -> list[dict[str, Any]]:
        faults: list[dict[str, Any]] = self.control("GET", "faults")["faults"]
        return faults

    def clear_faults(self, client_id: str | None = None) -> None:
        """Remove all faults, and release held calls; or remove those of one application."""
        self.control("DELETE", "faults" + (f"?client_id={client_id}" if client_id else ""))

    def create_applications(self, count: int = 1, **members: Any) -> list[dict[str, Any]]:
        """Create applications in development mode. Returns them with `client_id` and `client_secret`.

        Their redirect URIs are those of the first application unless `redirect_uris` says otherwise. With
        `seed={"count": 5}`, each gets as many people (5 at most), returned as `people` as by `seed`. Other
        members: name, owner, users (email addresses), quota ("extended" is for everyone).
        """
        body = {"count": count, **members}
        applications: list[dict[str, Any]] = self.control("POST", "applications", body)["applications"]
        return applications

    def applications(self) -> list[dict[str, Any]]:
        applications: list[dict[str, Any]] = self.control("GET", "applications")["applications"]
        return applications

    def change_application(self, client_id: str, **changes: Any) -> None:
        """Change an application, such as `client_secret`, `redirect_uris`, `users`, or `quota`."""
        self.control("PATCH", f"applications/{client_id}", changes)

    def delete_application(self, client_id: str) -> None:
        self.control("DELETE", f"applications/{client_id}")

    def revoke_application(self, client_id: str) -> int:
        """Revoke all grants of an application. Returns their number."""
        return int(self.control("POST", f"applications/{client_id}/revoke")["revoked"])

    def held(self) -> int:
        """Return the number of calls that faults are holding."""
        return int(self.control("GET", "faults")["held"])

    def release(self) -> int:
        """Release all held calls. Returns their number."""
        return int(self.control("POST", "faults/release")["released"])

    def calls(
        self,
        path: str | None = None,
        grant_type: str | None = None,
        after: int = 0,
        client_id: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return the journal, oldest call first. A call is in it from the moment it arrives.

        `after` leaves out the calls up to that number (`n`), so that long journals are cheap to read. A call
        that was not finished when it was read is then not returned again.
        """
        query = {"after": after, "path": path, "grant_type": grant_type, "client_id": client_id}
        parameters = urlencode({name: value for name, value in query.items() if value is not None})
        journal = self.control("GET", f"journal?{parameters}")
        # Otherwise, a test might conclude that a forgotten call was never made.
        assert journal["forgotten"] <= after, f"calls up to {journal['forgotten']} were forgotten"
        calls: list[dict[str, Any]] = journal["calls"]
        return calls

    def clear_calls(self) -> None:
        self.control("DELETE", "journal")

    def wait_for_calls(self, count: int, **which: Any) -> list[dict[str, Any]]:
        """Wait until at least `count` calls have arrived. `which` is passed to `calls`."""
        self._wait_until(lambda: len(self.calls(**which)) >= count, TIMEOUT_S, f"{count} calls")
        return self.calls(**which)

    def wait_for_held(self, count: int, timeout: float = TIMEOUT_S) -> None:
        """Wait until at least `count` calls are being held."""
        self._wait_until(lambda: self.held() >= count, timeout, f"{count} held calls")

    def _wait_until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
            time.sleep(0.01)

    def advance(self, seconds: float) -> str:
        """Advance the sandbox's clock. Returns its time in RFC 3339."""
        return str(self.control("POST", "clock", {"advance": seconds})["now"])

    def people(self) -> list[dict[str, Any]]:
        people: list[dict[str, Any]] = self.control("GET", "people")["people"]
        return people

    def seed(self, count: int, **options: Any) -> list[dict[str, Any]]:
        """Create people who have given consent. Returns them with their tokens.

        Options are `scopes`, a list, `authorized_at`, a time in RFC 3339, `client_id`, for an application
        other than the first, and `public=True` for grants made without the client secret.
        """
        people: list[dict[str, Any]] = self.control("POST", "seed", {"count": count, **options})["people"]
        return people

    def revoke(self, person: str) -> None:
        """Revoke a person's grants, as if they removed the app on Spotify's pages."""
        self.control("POST", f"people/{person}/revoke")

    def rename(self, person: str, new_id: str) -> None:
        self.control("POST", f"people/{person}/rename", {"id": new_id})

    def expire_access_tokens(self) -> int:
        """Expire all access tokens. Returns their number."""
        return int(self.control("POST", "expire-access-tokens")["expired"])

    def tokens(self) -> list[dict[str, Any]]:
        """Return every grant with the short ids of its tokens."""
        grants: list[dict[str, Any]] = self.control("GET", "tokens")["grants"]
        return grants


def callback_query(callback: str) -> dict[str, str]:
    """Return the query of a callback URL as a dict."""
    return {name: values[0] for name, values in parse_qs(urlsplit(callback).query).items()}


@contextmanager
def running_sandbox(
    redirect_uris: Sequence[str] = (REDIRECT_URI,),
    client_secret: str = CLIENT_SECRET,
    options: Sequence[str] = (),
) -> Iterator[SandboxClient]:
    """Run `python -m sandbox` on a free port."""
    command = [sys.executable, "-m", "sandbox", "--port", "0"]
    command += ["--client-id", CLIENT_ID, "--client-secret", client_secret]
    for uri in redirect_uris:
        command += ["--redirect-uri", uri]
    command += options
    environ = {name: value for name, value in os.environ.items() if name != "APP_ENV"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=ends_with_parent(),  # noqa: PLW1509 - it only calls prctl
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("sandbox spotify on http"), f"the sandbox did not start: {line!r}"
        yield SandboxClient(line.rsplit(" ", 1)[1].strip())
    finally:
        process.terminate()
        try:
            process.wait(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.stdout.close()
