"""The sandbox Spotify as tests see it: a process, and an object to steer it.

    with running_sandbox() as sandbox:
        callback = sandbox.consent(authorize_url, person="mira_t_42")

The object talks plain HTTP to `/_sandbox/`; nothing of the sandbox is imported.
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
TIMEOUT_S = 30


class SandboxClient:
    """Steers a running sandbox. Every method raises AssertionError when the sandbox refuses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accounts_url = url
        self.api_url = f"{url}/v1"
        self._http = requests.Session()
        self._http.trust_env = False

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Call `/_sandbox/<path>`; the JSON of the answer, or None where it has no body."""
        response = self._http.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=TIMEOUT_S)
        assert response.ok, f"{method} /_sandbox/{path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def reset(self) -> None:
        """Back to the state right after the start; calls that are being held go on."""
        self.control("POST", "reset")

    def consent(
        self,
        authorize_url: str,
        person: str = "mira_t_42",
        decision: str = "agree",
        browser: requests.Session | None = None,
    ) -> str:
        """Do what a person does at `authorize_url`; returns the URL the browser is sent back to.

        `browser` keeps the person signed in at the sandbox from one call to the next.
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
            answer = visitor.post(target, data=form, allow_redirects=False, timeout=TIMEOUT_S)
            assert answer.is_redirect, f"{answer.status_code} {answer.text}"
            return answer.headers["Location"]

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Change settings; returns all of them. Without changes: just look."""
        settings: dict[str, Any] = self.control("PATCH", "settings", changes)
        return settings

    def fault(self, **members: Any) -> None:
        """Put a fault in the way of coming calls, as `fault(on="refresh", kind="google_502", times=2)`.

        Without `times` it meets one call, with `times=None` all until `clear_faults`. With
        `chance=0.1, seed=7` it meets about every tenth, and the same ones if the run is repeated.
        """
        self.control("POST", "faults", members)

    def faults(self) -> list[dict[str, Any]]:
        faults: list[dict[str, Any]] = self.control("GET", "faults")["faults"]
        return faults

    def clear_faults(self) -> None:
        """Remove all faults, and let go of the calls they hold."""
        self.control("DELETE", "faults")

    def held(self) -> int:
        """How many calls are being held by faults right now."""
        return int(self.control("GET", "faults")["held"])

    def release(self) -> int:
        """Let every held call go on; returns how many there were."""
        return int(self.control("POST", "faults/release")["released"])

    def calls(
        self, path: str | None = None, grant_type: str | None = None, after: int = 0
    ) -> list[dict[str, Any]]:
        """The journal, oldest call first; a call is in it from the moment it arrives.

        `after` leaves out the calls up to that number (`n`), which is what keeps a long run's journal
        cheap to read. A call that was not finished when it was read is not shown again that way.
        """
        query = {"after": after, "path": path, "grant_type": grant_type}
        picked = urlencode({name: value for name, value in query.items() if value is not None})
        journal = self.control("GET", f"journal?{picked}")
        # A test that compares with the journal must not take a call for one that never was.
        assert journal["forgotten"] <= after, f"calls up to {journal['forgotten']} are no longer kept"
        calls: list[dict[str, Any]] = journal["calls"]
        return calls

    def clear_calls(self) -> None:
        self.control("DELETE", "journal")

    def wait_for_calls(self, count: int, timeout: float = 10, **which: Any) -> list[dict[str, Any]]:
        """Wait until at least `count` calls have arrived; `which` is passed to `calls`."""
        self._until(lambda: len(self.calls(**which)) >= count, timeout, f"{count} calls")
        return self.calls(**which)

    def wait_for_held(self, count: int, timeout: float = 10) -> None:
        """Wait until at least `count` calls are being held."""
        self._until(lambda: self.held() >= count, timeout, f"{count} held calls")

    def _until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
            time.sleep(0.01)

    def advance(self, seconds: float) -> str:
        """Move the sandbox's clock; returns its new time in RFC 3339."""
        return str(self.control("POST", "clock", {"advance": seconds})["now"])

    def people(self) -> list[dict[str, Any]]:
        people: list[dict[str, Any]] = self.control("GET", "people")["people"]
        return people

    def seed(self, count: int, **options: Any) -> list[dict[str, Any]]:
        """Let that many people move in who have all agreed already; returns them with raw tokens.

        Options are `scopes`, a list, and `authorized_at`, a time in RFC 3339.
        """
        people: list[dict[str, Any]] = self.control("POST", "seed", {"count": count, **options})["people"]
        return people

    def revoke(self, person: str) -> None:
        """The person removes the app on Spotify's pages."""
        self.control("POST", f"people/{person}/revoke")

    def rename(self, person: str, new_id: str) -> None:
        self.control("POST", f"people/{person}/rename", {"id": new_id})

    def expire_access_tokens(self) -> int:
        """No access token issued so far is good any longer; returns how many that were."""
        return int(self.control("POST", "expire-access-tokens")["expired"])

    def tokens(self) -> list[dict[str, Any]]:
        """Every grant with its tokens, which are named by short ids."""
        grants: list[dict[str, Any]] = self.control("GET", "tokens")["grants"]
        return grants


def callback_query(callback: str) -> dict[str, str]:
    """The query of a callback URL, `code`, `state` or `error`, as a dict."""
    return {name: values[0] for name, values in parse_qs(urlsplit(callback).query).items()}


@contextmanager
def running_sandbox(
    redirect_uris: Sequence[str] = (REDIRECT_URI,),
    client_id: str = CLIENT_ID,
    client_secret: str = CLIENT_SECRET,
    options: Sequence[str] = (),
) -> Iterator[SandboxClient]:
    """Start `python -m sandbox` on a free port, and end it afterwards."""
    command = [sys.executable, "-m", "sandbox", "--port", "0"]
    command += ["--client-id", client_id, "--client-secret", client_secret]
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
            process.wait(timeout=10)
        finally:
            process.kill()
            process.stdout.close()
