"""The service that is scanned, started from the files in `deploy/`."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.conftest import SETTINGS
from tests.helpers.flows import PASSWORD
from tests.helpers.servers import (
    LONG,
    Nginx,
    migrate,
    running_nginx,
    running_redis,
    running_server,
)
from tests.spa.pages import Pages, serving

# The scanners do not send the host name in TLS, so ours is the default server.
CHANGES = {
    "listen 443 ssl http2 default_server;": "listen 443 ssl http2;",
    (
        "    server {\n        listen 443 ssl http2;\n        listen [::]:443 ssl http2;\n"
        f"        server_name {Nginx.HOST};"
    ): (
        "    server {\n        listen 443 ssl http2 default_server;\n        listen [::]:443 ssl http2;\n"
        f"        server_name {Nginx.HOST} localhost 127.0.0.1;"
    ),
}


@dataclass(frozen=True)
class Service:
    """What is scanned."""

    port: int  # gunicorn's
    cookie: str  # of a person who is signed in
    pages: Pages  # of the Vue app, which is not built yet
    home: Path
    _starting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def nginx(self) -> Iterator[int]:
        """Run an nginx of its own for a scanner: it limits requests by address. Yields its port."""
        with ExitStack() as stack:
            with self._starting:
                nginx = stack.enter_context(running_nginx(self.port, CHANGES))
            yield nginx.port


@contextmanager
def running_service() -> Iterator[Service]:
    """Run the API, and serve the pages of the Vue app."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pages = stack.enter_context(serving(home / "dist"))
        settings = {
            **SETTINGS,
            "DATABASE_URL": f"sqlite:///{home / 'backline.sqlite3'}",
            "REDIS_URL": stack.enter_context(running_redis()),
            "SPOTIFY_ACCOUNTS_URL": "http://127.0.0.1:1",
            "SPOTIFY_API_URL": "http://127.0.0.1:1",
            "CORS_ORIGINS": pages.origin,
            "TRUSTED_PROXIES": "1",
            "TRUSTED_HOSTS": f"{Nginx.HOST},localhost,127.0.0.1",
        }
        migrate(settings)
        server = stack.enter_context(running_server({**settings, "SESSION_COOKIE_SECURE": "true"}))
        # The page has another site's cookie rules over http, so it uses gunicorn directly.
        pages.api_url = server.url
        yield Service(server.port, _sign_in(server.url), pages, home)


def _sign_in(url: str) -> str:
    """Register somebody, and return the session cookie."""
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    headers = {"X-Requested-With": "scanner"}
    response = requests.post(f"{url}/api/register", json=body, headers=headers, timeout=LONG)
    response.raise_for_status()
    return response.headers["Set-Cookie"].partition(";")[0]
