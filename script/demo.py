"""The demo app, examples/vue-spa: installs and builds it, and serves it with Vite.

It is optional. If something is missing, one line says what, and everything else runs without it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from config import Config
from script import ports
from script.supervisor import ProgramFailed, Programs, say

APP = Path("examples/vue-spa")
VITE = APP / "node_modules/vite/bin/vite.js"
USUAL_URL = "http://127.0.0.1:5173"
OLDEST_NODE = (20, 19)  # Vite's minimum; see "engines" in its package.json
INSTALL_LIMIT_S = 180.0  # without a network, npm retries for minutes


class DemoUnavailable(Exception):
    """The demo app is not served. The message says why, in one line."""


def find_url(settings: Mapping[str, str], config: Config) -> str | None:
    """Return where to serve the app, or None if something is missing, and print what."""
    try:
        require_node()
        return choose_url(settings, config)
    except DemoUnavailable as reason:
        say(f"==> The demo app is not served: {reason}")
        return None


def prepare(programs: Programs, config: Config) -> bool:
    """Install and build the app. Return whether that worked, and otherwise print why not."""
    try:
        install(programs)
        build(programs, config)
    except ProgramFailed as reason:
        say(f"==> The demo app is not served: {reason}")
        return False
    return True


def choose_url(settings: Mapping[str, str], config: Config) -> str:
    """Return FRONTEND_URL or the usual URL. Raise DemoUnavailable if the app cannot be served there."""
    url = settings.get("FRONTEND_URL", "").strip().rstrip("/") or USUAL_URL
    if not re.fullmatch(r"http://127\.0\.0\.1:\d+", url) or urlsplit(url).port == config.port:
        raise DemoUnavailable(f"FRONTEND_URL names another app, {url}.")
    # The default of CORS_ORIGINS includes the usual URL and FRONTEND_URL.
    if url not in config.cors_origins:
        raise DemoUnavailable(f"{url} is not in CORS_ORIGINS.")
    port = urlsplit(url).port or 80
    if not ports.is_free("127.0.0.1", port):
        raise DemoUnavailable(
            f"port {port} is taken{ports.by_holder(port)}. To serve it elsewhere, "
            f"set FRONTEND_URL=http://127.0.0.1:{port + 10} in .env."
        )
    return url


def require_node() -> None:
    """Raise DemoUnavailable if Node is missing or too old."""
    needs = f"it needs Node {'.'.join(map(str, OLDEST_NODE))} or newer"
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise DemoUnavailable(f"{needs}, with npm, on PATH.")
    output = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    if tuple(map(int, re.findall(r"\d+", output)[:2])) < OLDEST_NODE:
        raise DemoUnavailable(f"{needs}, not {output.strip() or 'an unknown version'}.")


def is_installed(folder: Path) -> bool:
    """Return whether node_modules is complete and newer than package-lock.json."""
    finished, lock = folder / "node_modules/.package-lock.json", folder / "package-lock.json"
    return finished.is_file() and finished.stat().st_mtime >= lock.stat().st_mtime


def install(programs: Programs) -> None:
    """Install the packages of package-lock.json, unless that was done before."""
    if is_installed(APP):
        return
    say("==> Installing the demo app's packages (npm). Without a network, npm gives up after some minutes.")
    # --include=dev, because NODE_ENV=production would omit the build tools.
    command = ["npm", "ci", "--prefix", str(APP), "--include=dev"]
    programs.complete(programs.start("npm", *command, env=os.environ, role="task"), INSTALL_LIMIT_S)


def build(programs: Programs, config: Config) -> None:
    """Build the app for this API. It takes two seconds, so it is done on every start."""
    settings = {"VITE_API_URL": f"http://127.0.0.1:{config.port}", "VITE_IMAGE_HOSTS": ""}
    if config.uses_sandbox:
        sandbox = urlsplit(config.spotify_api_url)._replace(path="").geturl()
        settings |= {"VITE_IMAGE_HOSTS": sandbox, "VITE_SPOTIFY_DASHBOARD_URL": f"{sandbox}/dashboard"}
    command = ["node", str(VITE), "build", str(APP), "--logLevel", "warn"]
    programs.complete(programs.start("build", *command, env=os.environ | settings, role="task"))


def serve(programs: Programs, url: str) -> None:
    """Serve the built app."""
    port = urlsplit(url).port or 80
    listen = ["--host", "127.0.0.1", "--port", str(port), "--strictPort"]
    command = ["node", str(VITE), "preview", str(APP), *listen, "--logLevel", "warn"]
    app = programs.start("app", *command, env=os.environ, role="optional")
    programs.wait_until(lambda: app.status is not None or ports.accepts("127.0.0.1", port), "app", 60)
