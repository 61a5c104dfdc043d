"""The application in another process, driven through its pipes: for races between processes.

    with AppProcess(env) as one, AppProcess(env) as other:
        cookie = one.call("POST", "/api/login", {"login": "ada", "password": PASSWORD}).cookie
        other.start_reading("/api/session", cookie)
        one.call("PATCH", "/api/user", {"username": "lovelace"}, cookie=cookie)
        other.call("GET", "/api/user", cookie=cookie)

Passwords are hashed with little work, and changes of profiles and tokens are not limited.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

from script.supervisor import ends_with_parent
from tests.helpers.redis_cluster import CLUSTER_SCHEME
from tests.helpers.servers import LONG, ROOT, patient, process_environment

COOKIE = "backline_session"


@dataclass(frozen=True)
class AppResponse:
    """A response, and the session cookie that the client has afterwards."""

    status: int
    json: Any
    cookie: str | None


class AppProcess:
    """A process that handles one request at a time, and reads in the background if asked to."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=process_environment({**self._env, "LOG_LEVEL": "WARNING"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
            preexec_fn=ends_with_parent(),  # noqa: PLW1509 - one call to the kernel, no lock, no memory
        )
        assert self._read_line() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        cookie: str | None = None,
        token: str | None = None,
    ) -> AppResponse:
        """Make a request, with a cookie or a bearer token."""
        request = {"method": method, "path": path, "body": body, "cookie": cookie, "token": token}
        return AppResponse(**self._ask("call", **request))

    def start_reading(self, path: str, cookie: str = "", *, token: str = "", threads: int = 1) -> None:
        """Request a path again and again in the background, and no longer what was requested before."""
        self._ask("start_reading", path=path, cookie=cookie, token=token, threads=threads)

    def store_grant(self, user_id: int, access_token: str) -> None:
        """Store a new consent of this user for the Spotify account `races`, with this access token."""
        self._ask("store_grant", user_id=user_id, access_token=access_token)

    def die_after_next_commit(self) -> None:
        """Let the next change of a remembered row kill this process with SIGKILL, right after its COMMIT."""
        self._ask("die_after_next_commit")

    def wait_until_dead(self) -> None:
        """Wait until this process was killed."""
        assert self._process.wait(LONG) == -signal.SIGKILL

    def send(self, method: str, path: str, body: object = None, cookie: str | None = None) -> None:
        """Make a request, and do not wait for its response."""
        self._write("call", method=method, path=path, body=body, cookie=cookie)

    def _ask(self, name: str, **arguments: object) -> dict[str, Any]:
        self._write(name, **arguments)
        result: dict[str, Any] = json.loads(self._read_line())
        return result

    def _write(self, name: str, **arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self._process.stdin.flush()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line: bytes = self._process.stdout.readline()
        assert line, "the process has ended"
        return line.decode().strip()


class _Worker:
    """What runs in the other process."""

    def __init__(self) -> None:
        from app import create_app
        from config import Config

        self._app = create_app(Config.from_env(os.environ))
        self._services = self._app.extensions["backline"]
        self._services.mailer.transport.stream = io.StringIO()
        if os.environ["REDIS_URL"].startswith(
            ("unix://", CLUSTER_SCHEME)
        ):  # not behind a proxy that lets it fail
            patient(self._services.redis)
        self._reads: tuple[str, str, str] | None = None  # path, cookie, and token

    def call(
        self, method: str, path: str, body: object, cookie: str | None, token: str | None = None
    ) -> dict[str, Any]:
        client = self._app.test_client()
        if cookie:
            client.set_cookie(COOKIE, cookie)
        headers = {"Authorization": f"Bearer {token}"} if token else {"X-Requested-With": "test"}
        response = client.open(path, method=method, json=body, headers=headers)
        found = client.get_cookie(COOKIE)
        return {
            "status": response.status_code,
            "json": response.get_json(silent=True),
            "cookie": found.value if found is not None else None,
        }

    def start_reading(self, path: str, cookie: str, token: str, threads: int) -> dict[str, Any]:
        def read() -> None:
            while self._reads is not None:
                path, cookie, token = self._reads
                self.call("GET", path, None, cookie, token)
                time.sleep(0.0005)  # leaves the processor to the writer

        runs, self._reads = self._reads is not None, (path, cookie, token)
        for _ in range(0 if runs else threads):
            threading.Thread(target=read, daemon=True).start()
        return {}

    def store_grant(self, user_id: int, access_token: str) -> dict[str, Any]:
        from app.infra import database
        from app.models import snapshots
        from app.spotify.clients.consent import Consent
        from app.spotify.clients.profile import Profile
        from app.spotify.clients.token_response import TokenResponse

        with self._app.app_context():
            row = database.read(snapshots.OF_USER.params(id=user_id))[0]
            consent = Consent(
                Profile("races", None, None, None, None, None),
                TokenResponse(access_token, f"refresh {access_token}", 3600, "streaming"),
                time.monotonic(),
                self._services.applications.to_connect(None),
            )
            user = snapshots.from_row(row, time.monotonic()).user
            self._services.connections.store_grant(consent, user=user)
        return {}

    def die_after_next_commit(self) -> dict[str, Any]:
        def die(_change: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        self._services.row_versions.end = die
        return {}


def main() -> None:
    """Do what the lines of standard input say, and print each result as a line of JSON."""
    from app.auth import passwords
    from app.user import routes
    from tests.conftest import CHEAP_HASH, CHEAP_HASHER

    cheap = patch.multiple(passwords, _hasher=CHEAP_HASHER, UNUSABLE_HASH=CHEAP_HASH)
    unlimited = patch.multiple(routes, PROFILE_CHANGES_PER_HOUR=1_000_000, TOKENS_PER_HOUR=1_000_000)
    with cheap, unlimited:
        worker = _Worker()
        _answer("ready")
        for line in sys.stdin:
            name, arguments = json.loads(line)
            _answer(json.dumps(getattr(worker, name)(**arguments)))
    os._exit(0)  # the reading threads do not end


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
