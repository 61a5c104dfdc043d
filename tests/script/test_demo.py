"""script/server and the demo app, which is optional.

Node and npm are fakes here. The real ones run in `test_real_node_serves_the_app` and in tests/spa.
"""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from config import Config
from script import demo, ports
from script.demo import DemoUnavailable
from tests.conftest import SETTINGS
from tests.helpers import secret_scanner
from tests.helpers.servers import LONG, free_port
from tests.script.running import Environ, Run, Running

pytestmark = pytest.mark.timeout(1800)  # several starts of everything

ROOT = Path(__file__).resolve().parent.parent.parent

# Replaces Node with Vite: builds a page that shows its settings, and serves it.
NODE = """
case "$1 $2" in
--version*) echo "${NODE_IS-v20.19.0}" ;;
*"vite.js build")
  mkdir -p "$3/dist"
  echo "api=$VITE_API_URL images=$VITE_IMAGE_HOSTS $VITE_SPOTIFY_DASHBOARD_URL" > "$3/dist/index.html" ;;
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
def demo_url(environ: Environ) -> str:
    """Use another port for the demo app, since the usual one may be taken. Returns its URL."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def with_node(tmp_path: Path, environ: Environ, demo_url: str) -> Callable[..., Environ]:
    """Make a PATH on which `node` and `npm` are these programs."""

    def machine(node: str = NODE, npm: str = NPM, **variables: str) -> Environ:
        folder = tmp_path / "node"
        folder.mkdir()
        for name, body in {"node": node, "npm": npm}.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}")
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{environ['PATH']}"
        return {**environ, "PATH": path, "FRONTEND_URL": demo_url, **variables}

    return machine


def opened(running: Running) -> str:
    """Return the URL that the output says to open."""
    found = re.search(r"Open +(\S+)", running.output)
    assert found, running.output
    return found[1]


def redirect_target(environ: Environ) -> str:
    """Return where the API redirects a browser after Spotify's consent page."""
    url = f"http://127.0.0.1:{environ['PORT']}/api/spotify/authorize?error=access_denied"
    with requests.Session() as http:
        http.trust_env = False
        response = http.get(url, headers={"Accept": "text/html"}, allow_redirects=False, timeout=LONG)
    return response.headers["Location"].partition("?")[0]


def read(url: str) -> str:
    with requests.Session() as http:
        http.trust_env = False
        return http.get(url, timeout=LONG).text


def test_app_is_installed_built_and_served(
    run: Run, with_node: Callable[..., Environ], demo_url: str
) -> None:
    environ = with_node()
    first = run(environ).until_ready()
    assert "Installing the demo app's packages" in first.output
    assert opened(first) == demo_url
    api = f"http://127.0.0.1:{environ['PORT']}"
    spotify = environ["SPOTIFY_ACCOUNTS_URL"]
    assert read(demo_url).strip() == f"api={api} images={spotify} {spotify}/dashboard"
    assert redirect_target(environ) == demo_url
    assert first.end() == 0
    assert first.remaining_processes() == []

    second = run(environ).until_ready()
    assert "npm" not in second.output, "packages are installed once"
    found = re.search(r"pid (\d+)", ports.by_holder(int(demo_url.rpartition(":")[2])))
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    second.until("app was ended by SIGKILL")
    assert redirect_target(environ) == demo_url  # the rest goes on
    assert second.end() == 0


def test_packages_count_as_installed_if_newer_than_the_lock_file(tmp_path: Path) -> None:
    (tmp_path / "package-lock.json").touch()
    assert not demo.is_installed(tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/.package-lock.json").touch()
    assert demo.is_installed(tmp_path)
    os.utime(tmp_path / "package-lock.json", (time.time() + 9, time.time() + 9))
    assert not demo.is_installed(tmp_path)


def test_frontend_url_defaults_to_the_app(monkeypatch: pytest.MonkeyPatch, demo_url: str) -> None:
    """Nothing is started, because the usual port may be taken here."""
    from script import server

    settings = {name: value for name, value in SETTINGS.items() if not name.startswith("SPOTIFY_")}
    config = Config.from_env(settings)
    monkeypatch.setattr(server, "read_settings", lambda: {"APP_ENV": "development"})
    assert server.environment(config, demo_url)["FRONTEND_URL"] == demo_url
    assert "FRONTEND_URL" not in {**server.environment(config)}.keys() - os.environ.keys()
    monkeypatch.setattr(server, "read_settings", lambda: {"FRONTEND_URL": "http://127.0.0.1:1/"})
    assert "FRONTEND_URL" not in server.environment(config, demo_url).keys() - os.environ.keys()


def test_own_applications_can_be_tried_with_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    from script import server

    def spotify_apps(config: Config, **settings: str) -> str | None:
        monkeypatch.setattr(server, "read_settings", lambda: settings)
        return server.environment(config).get("SPOTIFY_APPS")

    monkeypatch.delenv("SPOTIFY_APPS", raising=False)
    sandbox = {name: value for name, value in SETTINGS.items() if not name.startswith("SPOTIFY_")}
    assert spotify_apps(Config.from_env(sandbox)) == "both"
    assert spotify_apps(Config.from_env(sandbox), SPOTIFY_APPS="own") is None
    assert spotify_apps(Config.from_env(SETTINGS)) is None


def test_api_runs_while_npm_waits_and_after_the_build_failed(
    run: Run, with_node: Callable[..., Environ], tmp_path: Path
) -> None:
    network = tmp_path / "network"
    environ = with_node(
        npm=f"until [ -e {network} ]; do sleep 0.1; done\n{NPM}",
        node=NODE.replace("mkdir", "echo broken; false; mkdir -q"),
    )
    docs = f"http://127.0.0.1:{environ['PORT']}/api/docs"

    running = run(environ).until("Installing the demo app's packages")
    assert f"The API is running: {docs}" in running.output
    assert "<title>" in read(docs)
    network.touch()

    running.until_ready()
    assert "The demo app is not served: build exited with status" in running.output
    assert opened(running) == docs
    assert running.end() == 0
    assert running.remaining_processes() == []


@pytest.mark.parametrize("version", ["v18.20.4", "v20.18.9", "what?"])
def test_old_node_is_rejected(
    with_node: Callable[..., Environ], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("PATH", with_node()["PATH"])
    monkeypatch.setenv("NODE_IS", version)
    with pytest.raises(DemoUnavailable, match=r"needs Node 20\.19 or newer"):
        demo.require_node()
    monkeypatch.setenv("NODE_IS", "v22.1.0")
    demo.require_node()


def test_unusable_url_is_explained(demo_url: str) -> None:
    from config import Config

    def config(**settings: str) -> Config:
        return Config.from_env({**SETTINGS, "CORS_ORIGINS": "", **settings})

    secret_scanner.SCANNER.learn_settings(SETTINGS)
    assert demo.choose_url({"FRONTEND_URL": f"{demo_url}/"}, config(FRONTEND_URL=demo_url)) == demo_url
    with pytest.raises(DemoUnavailable, match="FRONTEND_URL names another app"):
        demo.choose_url({"FRONTEND_URL": "https://app.example.com"}, config())
    with pytest.raises(DemoUnavailable, match="not in CORS_ORIGINS"):
        demo.choose_url({"FRONTEND_URL": demo_url}, config(CORS_ORIGINS="https://app.example.com"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = {"FRONTEND_URL": f"http://127.0.0.1:{port}"}
        with pytest.raises(
            DemoUnavailable, match=rf"port {port} is taken by .*pid {os.getpid()}.*FRONTEND_URL="
        ) as reported:
            demo.choose_url(taken, config(**taken))
        assert f":{port + 10} in .env" in str(reported.value)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_real_node_serves_the_app(run: Run, environ: Environ, demo_url: str, checkout: Path) -> None:
    # Share installed packages: downloading them again would test npm.
    installed = ROOT / demo.APP / "node_modules"
    if (installed / ".package-lock.json").is_file():
        (checkout / demo.APP / "node_modules").symlink_to(installed)
    running = run({**environ, "FRONTEND_URL": demo_url}).until_ready()
    assert opened(running) == demo_url, running.output
    page = read(f"{demo_url}/now-playing")
    assert f'content="http://127.0.0.1:{environ["PORT"]}"' in page
    assert environ["SPOTIFY_ACCOUNTS_URL"] in page
    assert running.end() == 0
    assert running.remaining_processes() == []
