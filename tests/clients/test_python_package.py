"""The Python package, built and installed, and used with a server: tokens, logins, libraries, and errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.accounts import Account
from tests.clients.conftest import environment
from tests.helpers.flows import PASSWORD
from tests.helpers.node import run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server

pytestmark = [pytest.mark.sqlite_only, pytest.mark.slow]

# It has the rights of the account, and prints what the libraries and the server returned.
USE = """
import asyncio, json, sys
from backline_client import ApiError, Backline

url, token, reader = sys.argv[1:]
backline = Backline(url + "/", token)
spotipy, tekore = backline.spotify(), backline.spotify("tekore")
first = spotipy.current_user_top_tracks(limit=1)
second = spotipy.next(first)
page = tekore.current_user_top_tracks(limit=1)
spotipy.next_track()
tekore.playback_next()

async def asynchronously():
    spotify = backline.spotify("tekore", asynchronous=True)
    user = await spotify.current_user()
    await spotify.close()
    return user.display_name

def problem(call):
    try:
        call()
    except ApiError as error:
        assert error.title and error.detail and error.request_id
        return [error.status, error.slug]

print(json.dumps({
    "names": [
        spotipy.me()["display_name"],
        tekore.current_user().display_name,
        asyncio.run(asynchronously()),
        backline.connection()["display_name"],
    ],
    "users": [backline.user()["username"], backline.session()["user"]["username"]],
    "pages": [second["offset"], tekore.next(page).offset],
    "missing right": problem(Backline(url, reader).user),
    "unknown token": problem(Backline(url, "bl_pat_unknown").session),
    "shown": repr(backline),
}))
"""

LOGIN = """
import sys, time
from backline_client import Backline, LoginError

url, file = sys.argv[1:]
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 50)
try:
    backline = Backline.login(url, "my-script", ["spotify:read", "account:read"], token_file=file)
except LoginError as error:
    print(error.error, flush=True)
else:
    print(backline.user()["username"], flush=True)
"""

# Polls without a pause, and waits for a line of input before the third time.
IMPATIENT_LOGIN = """
import sys, time
from backline_client import Backline

slept = []

def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:
        input()

time.sleep = sleep
Backline.login(sys.argv[1], "my-script")
print(slept, flush=True)
"""

TYPES = """
from backline_client import ApiError, Backline, LoginError

backline: Backline = Backline.login("https://api.example.com", "x", show=lambda text: None)
reveal_type(backline.session())
reveal_type(ApiError(404, {}).retry_after)
backline.spotify("spotify.py")
"""


def test_package_returns_ready_clients_of_both_libraries(
    installed: Path, api: Server, account: Account, sandbox: SandboxClient
) -> None:
    sandbox.settings(mode="legacy")  # tekore requires members that Spotify has removed for new applications
    account.connect()
    token = account.create_token("spotify:read", "spotify:write", "account:read")
    reader = account.create_token("spotify:read")
    command = ("-W", "error", "-c", USE, api.url, token, reader)
    found = json.loads(run(installed, sys.executable, *command, environ=environment(installed)))

    assert found["names"] == ["Mira T."] * 4
    assert found["users"] == ["ada", "ada"]
    assert found["pages"] == [1, 1]
    assert found["missing right"] == [403, "insufficient-rights"]
    assert found["unknown token"] == [401, "invalid-bearer-token"]
    assert found["shown"] == f"Backline('{api.url}')"
    assert len(sandbox.calls(path="/v1/me/player/next")) == 2


def test_login_waits_for_the_person_and_stores_the_token_only_for_its_owner(
    installed: Path, tmp_path: Path, api: Server, account: Account
) -> None:
    file = tmp_path / "folder" / "token"

    def login(decision: str | None) -> str:
        program = start(installed, LOGIN, api.url, str(file))
        if decision is not None:
            decide(program, account, decision)
        output, _ = program.communicate(timeout=120)
        return output.strip()

    assert login("deny") == "access_denied"
    assert not file.exists()
    assert login("approve") == "ada"
    assert (file.stat().st_mode & 0o777, list(file.parent.iterdir())) == (0o600, [file])
    first = file.read_text()
    assert login(None) == "ada"  # with the same token
    [listed] = account.call("GET", "user/tokens")["items"]
    assert listed["name"] == "my-script"
    account.call("DELETE", f"user/tokens/{listed['id']}")
    assert login("approve") == "ada"
    assert file.read_text() != first


def test_login_slows_down_when_the_server_asks_for_it(installed: Path, api: Server, account: Account) -> None:
    program = start(installed, IMPATIENT_LOGIN, api.url)
    decide(program, account, "approve")
    output, _ = program.communicate("approved\n", timeout=120)

    assert output.strip() == "[5, 5, 10]"


def start(installed: Path, lines: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a program that uses the package."""
    command = [sys.executable, "-W", "error", "-c", lines, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(installed), stdin=pipe, stdout=pipe, text=True)


def decide(program: "subprocess.Popen[str]", account: Account, decision: str) -> None:
    """Follow what a login prints, and decide."""
    assert program.stdout is not None
    page, code = program.stdout.readline().split()[-1], program.stdout.readline().split()[-1][:-1]
    assert page.endswith(f"?code={code}")
    account.call("GET", f"user/devices/{code}")
    account.call("POST", f"user/devices/{code}", {"decision": decision, "current_password": PASSWORD})


def test_token_is_not_sent_over_the_network_unencrypted(installed: Path) -> None:
    lines = """
from backline_client import Backline
for url in ("http://api.example.com", "http://127.0.0.1.example.com", "ftp://127.0.0.1", "api.example.com"):
    try:
        Backline(url, "token")
    except ValueError as error:
        print("https://" in str(error))
"""
    assert run(installed, sys.executable, "-c", lines, environ=environment(installed)) == "True\n" * 4


def test_package_is_typed_and_needs_only_requests(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPES)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    command = (sys.executable, "-m", "mypy", "--no-incremental", "program.py")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(installed, MYPYPATH=""),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert 'Revealed type is "dict[str, Any]"' in lines[0], done.stdout
    assert 'Revealed type is "int | None"' in lines[1], done.stdout
    assert "No overload variant" in lines[2], done.stdout

    imports = "import sys, backline_client; print({'spotipy', 'tekore', 'httpx'} & set(sys.modules))"
    assert run(installed, sys.executable, "-c", imports, environ=environment(installed)) == "set()\n"
    [metadata] = installed.glob("*.dist-info/METADATA")
    needed = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needed if "extra" not in line] == ["Requires-Dist: requests>=2.31"]
