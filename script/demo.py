"""The demo app, examples/vue-spa, beside the API: its packages, its build, and Vite that serves it.

It is an extra: whatever is in its way is told in a line, and everything else runs without it.
"""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from config import Config
from script import ports
from script.supervisor import ProgramFailed, Programs, say

APP = Path("examples/vue-spa")
VITE = APP / "node_modules/vite/bin/vite.js"
USUAL_URL = "http://127.0.0.1:5173"
# What Vite asks for; see "engines" in its package.json.
OLDEST_NODE = (20, 19)
# npm waits for minutes where there is no network; the API waits for npm.
INSTALL_LIMIT_S = 180.0
POLL_S = 0.05


class NoDemo(Exception):
    """The demo app is not served. The message says why, in a line."""


@dataclass(frozen=True)
class Demo:
    """The demo app, built, and where it is to be served."""

    url: str
    node: str

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80


async def prepare(programs: Programs, settings: Mapping[str, str], config: Config) -> Demo | None:
    """Install and build the app, if it can be served here. Returns None, and says why, if not."""
    try:
        url = place(settings, config)
        demo = Demo(url, find_node())
        await install(programs)
        await build(programs, demo, config)
    except NoDemo as reason:
        say(f"==> The demo app is not served: {reason}")
        return None
    return demo


def place(settings: Mapping[str, str], config: Config) -> str:
    """Where the app is to be served: at the usual place, or wherever FRONTEND_URL puts it on this machine.

    Raises:
        NoDemo: FRONTEND_URL leads to another app, the API does not let this one in, or the port is taken.
    """
    url = settings.get("FRONTEND_URL", "").strip().rstrip("/") or USUAL_URL
    if not re.fullmatch(r"http://127\.0\.0\.1:\d+", url) or urlsplit(url).port == config.port:
        raise NoDemo(f"FRONTEND_URL leads to another one, {url}.")
    # The default of CORS_ORIGINS has both the usual place and FRONTEND_URL.
    if url not in config.cors_origins:
        raise NoDemo(f"{url} is not in CORS_ORIGINS.")
    port = urlsplit(url).port or 80
    if not ports.is_free("127.0.0.1", port):
        who = ports.holder(port)
        raise NoDemo(
            f"port {port} is taken{f' by {who}' if who else ''}. To have it elsewhere, "
            f"set FRONTEND_URL=http://127.0.0.1:{port + 10} in .env."
        )
    return url


def find_node() -> str:
    """The Node on PATH.

    Raises:
        NoDemo: there is none, it is too old, or it came without npm.
    """
    wanted = ".".join(map(str, OLDEST_NODE))
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise NoDemo(f"it needs Node {wanted} or newer, with npm, on PATH.")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(map(int, re.findall(r"\d+", said)[:2]))
    if version < OLDEST_NODE:
        found = said.strip() or "of no known version"
        raise NoDemo(f"it needs Node {wanted} or newer, and {node} is {found}.")
    return node


async def install(programs: Programs) -> None:
    """Bring node_modules up to date with package-lock.json.

    Raises:
        NoDemo: npm cannot, or takes too long.
    """
    # npm writes the first when it has come to its end.
    finished, lock = APP / "node_modules/.package-lock.json", APP / "package-lock.json"
    if finished.is_file() and finished.stat().st_mtime >= lock.stat().st_mtime:
        return
    say("==> Installing the demo app's packages (npm).")
    # NODE_ENV=production would leave out what builds.
    command = ["npm", "ci", "--prefix", str(APP), "--include=dev"]
    try:
        async with asyncio.timeout(INSTALL_LIMIT_S):
            await programs.complete("npm", *command, env=os.environ)
    except ProgramFailed as error:
        raise NoDemo(str(error)) from error
    except TimeoutError:
        raise NoDemo(f"npm did not come to its end within {INSTALL_LIMIT_S:.0f} s.") from None


async def build(programs: Programs, demo: Demo, config: Config) -> None:
    """Build the app for this API. It is quick, so it is done each time.

    Raises:
        NoDemo: Vite cannot.
    """
    images = urlsplit(config.spotify_api_url)._replace(path="").geturl() if config.uses_sandbox else ""
    settings = {"VITE_API_URL": f"http://127.0.0.1:{config.port}", "VITE_IMAGE_HOSTS": images}
    command = [demo.node, str(VITE), "build", str(APP), "--logLevel", "warn"]
    try:
        await programs.complete("build", *command, env={**os.environ, **settings})
    except ProgramFailed as error:
        raise NoDemo(str(error)) from error


async def serve(programs: Programs, demo: Demo) -> None:
    """Serve what was built."""
    place = ["--host", "127.0.0.1", "--port", str(demo.port), "--strictPort"]
    command = [demo.node, str(VITE), "preview", str(APP), *place, "--logLevel", "warn"]
    app = await programs.start("app", *command, env=os.environ, may_end=True)
    while app.is_running and not await asyncio.to_thread(ports.accepts, "127.0.0.1", demo.port):  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
