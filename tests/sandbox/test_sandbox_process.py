"""The sandbox's process: start, errors at the start, and end."""

import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

import requests

from tests.helpers.children import start_child
from tests.helpers.sandbox_client import ROOT, SandboxClient, running_sandbox
from tests.sandbox.conftest import App


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return start_child(
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "APP_ENV"}, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sandbox_does_not_start_in_production() -> None:
    process = start("--port", "0", APP_ENV="production")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "The sandbox Spotify does not run with APP_ENV=production.\n"


def test_taken_port_is_reported_in_one_line(sandbox: SandboxClient) -> None:
    port = sandbox.url.rpartition(":")[2]
    process = start("--port", port)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == f"Cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_help_names_every_option() -> None:
    process = start("--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for expected in (
        "--host",
        "--port",
        "--client-id",
        "--client-secret",
        "--redirect-uri",
        "SPOTIFY_ACCOUNTS_URL",
    ):
        assert expected in out


def test_signal_ends_the_sandbox() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start("--port", "0")
        assert process.stdout is not None
        url = process.stdout.readline().rpartition(" ")[2].strip()
        with requests.Session() as session:
            session.get(f"{url}/authorize?code=secret", timeout=60)
            # The open connection must not delay the end of the process.
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


def test_connections_are_kept_open(sandbox: SandboxClient) -> None:
    connection = http.client.HTTPConnection(sandbox.url.partition("//")[2], timeout=60)
    used = set()
    for method, path in [
        ("GET", "/v1/me"),
        ("POST", "/api/token"),
        ("GET", "/"),
        ("POST", "/_sandbox/reset"),
    ]:
        connection.request(method, path, body="grant_type=x" if method == "POST" else None)
        connection.getresponse().read()
        used.add(connection.sock and connection.sock.getsockname())
    connection.close()
    assert len(used) == 1
    assert None not in used


def test_every_response_is_framed_correctly(sandbox: SandboxClient) -> None:
    with requests.Session() as session:
        assert session.head(sandbox.url, timeout=60).status_code == 200
        assert session.options(f"{sandbox.api_url}/me", timeout=60).status_code == 200
        assert session.post(f"{sandbox.url}/api/token", data="x" * 2_000_000, timeout=60).status_code == 413
        assert session.get(sandbox.url, timeout=60).status_code == 200


def test_grants_are_saved_with_keep(tmp_path: Path) -> None:
    stored = tmp_path / "sandbox.json"

    def refresh(app: App) -> int:
        return app.refresh(tokens["refresh_token"]).status_code

    with running_sandbox(options=["--keep", str(stored)]) as sandbox:
        app = App(sandbox)
        tokens = app.connect()
        sandbox.rename("mira_t_42", "mira_new")
        app.http.close()
    assert stored.stat().st_mode & 0o777 == 0o600

    with running_sandbox(options=["--keep", str(stored)]) as sandbox:
        app = App(sandbox)
        assert app.call(tokens["access_token"], "GET", "me").json()["id"] == "mira_new"
        assert refresh(app) == 200
        sandbox.revoke("mira_new")
        app.http.close()
    with running_sandbox(options=["--keep", str(stored)]) as sandbox:
        app = App(sandbox)
        assert refresh(app) == 400
        app.http.close()


def test_seeded_people_are_not_saved(tmp_path: Path) -> None:
    stored = tmp_path / "sandbox.json"
    with running_sandbox(options=["--keep", str(stored)]) as sandbox:
        app = App(sandbox)
        sandbox.settings(rotate=True)
        replaced = app.connect()["refresh_token"]
        mira = app.refresh(replaced).json()["refresh_token"]
        seeded = sandbox.seed(2)
        # One of them also signs in with a browser.
        app.connect("seed-00001")
        # The file must not confuse ids that have changed their owner.
        sandbox.rename("jonas.k", "jonas.2")
        sandbox.rename("mira_t_42", "jonas.k")
        app.http.close()
    text = stored.read_text(encoding="utf-8")
    assert not any(person["id"] in text or person["account_id"] in text for person in seeded)

    with running_sandbox(options=["--keep", str(stored)]) as sandbox:
        app = App(sandbox)
        assert [person["id"] for person in sandbox.people()][:2] == ["jonas.k", "jonas.2"]
        assert len(sandbox.people()) == 4
        assert len(sandbox.tokens()) == 1
        assert app.refresh(mira).status_code == 200
        assert app.refresh(replaced).json()["error_description"] == "Refresh token revoked"
        response = app.refresh(seeded[0]["refresh_token"])
        assert response.json()["error_description"] == "Invalid refresh token"
        sandbox.rename("jonas.k", "mira")
        sandbox.rename("jonas.2", "jonas.k")
        assert sandbox.seed(1)[0]["id"] == "seed-00001"
        app.http.close()


def test_foreign_file_is_named_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[1, 2]", encoding="utf-8")
    process = start("--port", "0", "--keep", str(other))
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert str(other) in err
    assert other.read_text(encoding="utf-8") == "[1, 2]"


def test_file_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "sandbox.json"
    process = start("--port", "0", "--keep", str(missing))
    assert process.stdout is not None
    process.stdout.readline()  # it has started
    process.terminate()
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert err == f"{missing} cannot be written: No such file or directory. It stays as it was.\n"
