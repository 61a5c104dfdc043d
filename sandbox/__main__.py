"""Run the sandbox Spotify in the foreground: `python -m sandbox`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sandbox.app import create_app
from sandbox.applications import EXTENDED, Application
from sandbox.persistence import load, save
from sandbox.server import serve

# The same three values are in the product's development configuration.
CLIENT_ID = "5a4db0c0ffee4b0cac1e5a4db0c0ffee"
CLIENT_SECRET = "sandbox-secret-not-for-production"  # noqa: S105 - opens nothing but this sandbox
MAX_PORT = 65535
REDIRECT_URI = "http://127.0.0.1:5000/api/spotify/authorize"

_DESCRIPTION = """\
A strict substitute for Spotify's accounts service and Web API, with invented people and music.
All state is in memory, unless --keep names a file. Point an app at it with
SPOTIFY_ACCOUNTS_URL=http://HOST:PORT and SPOTIFY_API_URL=http://HOST:PORT/v1, then open
http://HOST:PORT/ to see its people and to control it, and http://HOST:PORT/dashboard to
create further applications, as on Spotify's dashboard."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=5001, help="0 picks a free one (default: %(default)s)")
    parser.add_argument(
        "--client-id", default=CLIENT_ID, help="client id of the first application (default: %(default)s)"
    )
    parser.add_argument(
        "--client-secret", default=CLIENT_SECRET, help="its client secret (default: %(default)s)"
    )
    parser.add_argument(
        "--redirect-uri",
        action="append",
        dest="redirect_uris",
        metavar="URI",
        help=f"a redirect URI registered for it; may be given several times (default: {REDIRECT_URI})",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="save applications, grants, and tokens (not those of seeded people) in this file between runs",
    )
    return parser.parse_args()


def main() -> int:
    """Serve until a signal arrives. Returns the exit status."""
    arguments = parse_arguments()
    if os.environ.get("APP_ENV") == "production":
        sys.stderr.write("The sandbox Spotify does not run with APP_ENV=production.\n")
        return 2
    redirect_uris = tuple(arguments.redirect_uris or [REDIRECT_URI])
    first = Application(arguments.client_id, arguments.client_secret, redirect_uris, quota=EXTENDED)
    app = create_app(first)
    try:
        listening = _listen(arguments.host, arguments.port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        sys.stderr.write(f"Cannot listen on {arguments.host}:{arguments.port}: {reason}\n")
        return 1
    state, keep = app.extensions["sandbox"], arguments.keep
    try:
        if keep:
            load(state, keep)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server = serve(app, listening)

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        """Exit at once, without waiting for threads that hold a call because of a fault."""
        try:
            if keep:
                save(state, keep)
        except OSError as error:
            sys.stderr.write(f"{keep} cannot be written: {error.strerror}. It stays as it was.\n")
            os._exit(1)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    sys.stdout.write(f"sandbox spotify on http://{host}:{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


if __name__ == "__main__":
    sys.exit(main())
