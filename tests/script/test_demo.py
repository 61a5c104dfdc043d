"""script/server and the demo app: there where it can be, and never in the way of the rest.

Node and npm are stand-ins here, which do what is asked of them at once. The real ones are at work in
`test_the_real_thing`, and in tests/spa.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import requests

from script import demo, ports
from script.demo import NoDemo
from script.supervisor import Programs
from tests.conftest import SETTINGS
from tests.helpers import secret_scanner
from tests.helpers.servers import free_port
from tests.script.running import Environ, Run, Running

ROOT = Path(__file__).resolve().parent.parent.parent

# Takes the place of Node with Vite: builds a page that shows its settings, and serves it.
NODE = """
case "$1 $2" in
--version*) echo "${NODE_IS-v20.19.0}" ;;
*"vite.js build")
  mkdir -p "$3/dist" && echo "api=$VITE_API_URL images=$VITE_IMAGE_HOSTS" > "$3/dist/index.html" ;;
*"vite.js preview") exec python3 -m http.server --bind "$5" --directory "$3/dist" "$7" ;;
*) echo "what is $*?"; exit 1 ;;
esac
"""
NPM = """
test "$1 $2" = "ci --prefix" || exit 1
echo "npm was here"
mkdir -p "$3/node_modules" && touch "$3/node_modules/.package-lock.json"
"""


@pytest.fixture
def place(environ: Environ) -> str:
    """Where the demo app is to be in this test: the usual port may be a developer's own."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def with_node(tmp_path: Path, environ: Environ, place: str) -> Callable[..., Environ]:
    """Makes a machine on which `node` and `npm` are these programs."""

    def machine(node: str = NODE, npm: str = NPM, **variables: str) -> Environ:
        folder = tmp_path / "node"
        folder.mkdir()
        for name, body in {"node": node, "npm": npm}.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}")
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{environ['PATH']}"
        return {**environ, "PATH": path, "FRONTEND_URL": place, **variables}

    return machine


def opened(running: Running) -> str:
    """What a person is told to open."""
    found = re.search(r"Open +(\S+)", running.output)
    assert found, running.output
    return found[1]


def leads_to(environ: Environ) -> str:
    """Where the API sends a browser that comes back from Spotify."""
    url = f"http://127.0.0.1:{environ['PORT']}/api/spotify/authorize?error=access_denied"
    with requests.Session() as http:
        http.trust_env = False
        answer = http.get(url, headers={"Accept": "text/html"}, allow_redirects=False, timeout=30)
    return answer.headers["Location"].partition("?")[0]


def read(url: str) -> str:
    with requests.Session() as http:
        http.trust_env = False
        return http.get(url, timeout=30).text


def test_with_node_the_app_is_installed_built_served_and_named_first(
    run: Run, with_node: Callable[..., Environ], place: str
) -> None:
    environ = with_node()
    first = run(environ).until_ready()
    assert "Installing the demo app's packages" in first.output
    assert opened(first) == place
    api = f"http://127.0.0.1:{environ['PORT']}"
    assert read(place).strip() == f"api={api} images={environ['SPOTIFY_ACCOUNTS_URL']}"
    assert leads_to(environ) == place
    assert first.end() == 0
    assert first.left_over() == []

    second = run(environ).until_ready()
    assert "npm" not in second.output, "what is installed is not installed again"
    assert second.end() == 0


def test_packages_are_installed_where_they_are_missing_or_older_than_the_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []

    class Npm:
        async def complete(self, *command: str, env: object) -> None:
            installed.append(" ".join(command[1:3]))
            (tmp_path / "node_modules").mkdir(exist_ok=True)
            (tmp_path / "node_modules/.package-lock.json").touch()

    def install() -> int:
        with ThreadPoolExecutor(1) as thread:  # Playwright's loop may run in this one
            thread.submit(asyncio.run, demo.install(cast("Programs", Npm()))).result()
        return len(installed)

    monkeypatch.setattr(demo, "APP", tmp_path)
    (tmp_path / "package-lock.json").touch()
    assert (install(), install()) == (1, 1)
    os.utime(tmp_path / "package-lock.json", (time.time() + 9, time.time() + 9))
    assert install() == 2
    assert installed == ["npm ci"] * 2


def test_where_frontend_url_is_not_set_it_leads_to_the_app(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The usual port may be taken on the machine that runs this, so nothing is started."""
    from script import server

    monkeypatch.setattr(server, "read_settings", lambda: {"APP_ENV": "development"})
    assert server.environment(demo.Demo(place, "node"))["FRONTEND_URL"] == place
    assert "FRONTEND_URL" not in {**server.environment(None)}.keys() - os.environ.keys()
    monkeypatch.setattr(server, "read_settings", lambda: {"FRONTEND_URL": "http://127.0.0.1:1/"})
    assert "FRONTEND_URL" not in server.environment(demo.Demo(place, "node")).keys() - os.environ.keys()


@pytest.mark.parametrize(
    ("programs", "told"),
    [
        ({"npm": "echo no network; exit 7"}, "npm exited with status 7"),
        (
            {"npm": NPM, "node": NODE.replace("mkdir", "echo broken; false; mkdir -q")},
            "build exited with status",
        ),
    ],
    ids=["npm fails", "the build fails"],
)
def test_what_fails_is_told_and_the_rest_runs(
    run: Run, with_node: Callable[..., Environ], programs: Mapping[str, str], told: str
) -> None:
    environ = with_node(**programs)
    running = run(environ).until_ready()
    assert f"The demo app is not served: {told}" in running.output
    assert opened(running) == f"http://127.0.0.1:{environ['PORT']}/api/docs"
    assert running.end() == 0
    assert running.left_over() == []


def test_the_end_of_the_app_is_told_and_the_rest_goes_on(
    run: Run, with_node: Callable[..., Environ], place: str
) -> None:
    environ = with_node()
    running = run(environ).until_ready()
    found = re.search(r"pid (\d+)", ports.holder(int(place.rpartition(":")[2])))
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    running.until("app was ended by SIGKILL")
    assert leads_to(environ) == place
    assert running.end() == 0


def test_without_node_one_line_says_so(
    run: Run, environ: Environ, place: str, without: Callable[..., str]
) -> None:
    bare = {**environ, "PATH": without("node", "npm"), "FRONTEND_URL": place}
    running = run(bare).until_ready()
    assert "The demo app is not served: it needs Node 20.19 or newer, with npm, on PATH." in running.output
    assert opened(running) == f"http://127.0.0.1:{environ['PORT']}/api/docs"
    assert running.end() == 0


@pytest.mark.parametrize("version", ["v18.20.4", "v20.18.9", "what?"])
def test_an_old_node_is_named(
    with_node: Callable[..., Environ], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("PATH", with_node()["PATH"])
    monkeypatch.setenv("NODE_IS", version)
    with pytest.raises(NoDemo, match=r"needs Node 20\.19 or newer"):
        demo.find_node()
    monkeypatch.setenv("NODE_IS", "v22.1.0")
    assert demo.find_node().endswith("/node")


def test_what_else_can_be_in_the_way_is_told(place: str) -> None:
    from config import Config

    def config(**settings: str) -> Config:
        return Config.from_env({**SETTINGS, "CORS_ORIGINS": "", **settings})

    secret_scanner.SCANNER.learn_settings(SETTINGS)
    assert demo.place({"FRONTEND_URL": f"{place}/"}, config(FRONTEND_URL=place)) == place
    with pytest.raises(NoDemo, match="FRONTEND_URL leads to another one"):
        demo.place({"FRONTEND_URL": "https://app.example.com"}, config())
    with pytest.raises(NoDemo, match="not in CORS_ORIGINS"):
        demo.place({"FRONTEND_URL": place}, config(CORS_ORIGINS="https://app.example.com"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = {"FRONTEND_URL": f"http://127.0.0.1:{port}"}
        with pytest.raises(
            NoDemo, match=rf"port {port} is taken by .*pid {os.getpid()}.*FRONTEND_URL="
        ) as told:
            demo.place(taken, config(**taken))
        assert f":{port + 10} in .env" in str(told.value)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_real_thing(run: Run, environ: Environ, place: str, checkout: Path) -> None:
    # Packages that are there already are shared: fetching them anew is npm's own business.
    installed = ROOT / demo.APP / "node_modules"
    if (installed / ".package-lock.json").is_file():
        (checkout / demo.APP / "node_modules").symlink_to(installed)
    running = run({**environ, "FRONTEND_URL": place}).until_ready()
    assert opened(running) == place, running.output
    page = read(f"{place}/now-playing")
    assert f'content="http://127.0.0.1:{environ["PORT"]}"' in page
    assert environ["SPOTIFY_ACCOUNTS_URL"] in page
    assert running.end() == 0
    assert running.left_over() == []
