"""The process: how it starts, refuses to start, and ends."""

import http.client
import os
import signal
import subprocess
import sys

import requests

from tests.sandbox_client import ROOT, SandboxClient


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "APP_ENV"}, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_production_is_refused() -> None:
    process = start("--port", "0", APP_ENV="production")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert err == "The sandbox Spotify does not run with APP_ENV=production.\n"


def test_a_taken_port_is_one_line_and_exit_1(sandbox: SandboxClient) -> None:
    port = sandbox.url.rpartition(":")[2]
    process = start("--port", port)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err == f"Cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_help_names_every_option() -> None:
    process = start("--help")
    out, _ = process.communicate(timeout=20)
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


def test_it_ends_at_once_and_has_logged_nothing() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start("--port", "0")
        assert process.stdout is not None
        url = process.stdout.readline().rpartition(" ")[2].strip()
        with requests.Session() as session:
            session.get(f"{url}/authorize?code=secret", timeout=10)
            # The connection stays open, and must not hold the process up.
            process.send_signal(number)
            out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (0, "", "")


def test_connections_are_kept_open(sandbox: SandboxClient) -> None:
    connection = http.client.HTTPConnection(sandbox.url.partition("//")[2], timeout=10)
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


def test_every_answer_is_framed_so_that_the_next_one_is_understood(sandbox: SandboxClient) -> None:
    with requests.Session() as session:
        assert session.head(sandbox.url, timeout=10).status_code == 200
        assert session.options(f"{sandbox.api_url}/me", timeout=10).status_code == 200
        assert session.post(f"{sandbox.url}/api/token", data="x" * 2_000_000, timeout=10).status_code == 413
        assert session.get(sandbox.url, timeout=10).status_code == 200
