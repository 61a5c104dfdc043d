"""One gunicorn and one nginx for all tests of this folder: what they do to them does not last."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import SETTINGS, start
from tests.helpers import secret_scanner
from tests.helpers.raw_http import Https
from tests.helpers.servers import Nginx, Server, migrate, running_nginx, running_server

StartNginx = Callable[..., Https]


@pytest.fixture(scope="package")
def behind_nginx(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of an app behind deploy/nginx.conf, with its own database."""
    settings = {
        **SETTINGS,
        "DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('deploy') / 'backline.sqlite3'}",
        "REDIS_URL": redis_url,
        "SPOTIFY_ACCOUNTS_URL": "http://127.0.0.1:1",
        "SPOTIFY_API_URL": "http://127.0.0.1:1",
        "SESSION_COOKIE_SECURE": "true",
        "TRUSTED_PROXIES": "1",
        "TRUSTED_HOSTS": Nginx.HOST,
        "LOG_LEVEL": "DEBUG",
    }
    secret_scanner.SCANNER.learn_settings(settings)
    migrate(settings)
    return settings


@pytest.fixture(scope="package")
def api(behind_nginx: dict[str, str]) -> Iterator[Server]:
    """The app under gunicorn."""
    with running_server(behind_nginx, workers=1) as server:
        yield server


@pytest.fixture(scope="package")
def nginx(api: Server) -> Iterator[Https]:
    """nginx before it."""
    with ExitStack() as stack:
        yield Https(start(stack, running_nginx(api.port)))


@pytest.fixture
def another_nginx() -> Iterator[StartNginx]:
    """Starts nginx before another port, or with changes: `another_nginx(port, {"20s": "1s"})`."""
    with ExitStack() as stack:
        yield lambda *args: Https(start(stack, running_nginx(*args)))
