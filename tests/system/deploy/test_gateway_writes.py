"""Writes for the Web API through nginx when gunicorn does not respond: none is sent twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from flask.testing import FlaskClient

from tests.helpers.flows import connect, create_token, register
from tests.helpers.raw_http import ORIGIN, RawResponse, may_read, request
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Nginx, Server, eventually, free_port
from tests.system.deploy.conftest import StartNginx

pytestmark = [pytest.mark.processes, pytest.mark.sqlite_only]

# The default of newer versions of nginx.
KEEPALIVE = {"upstream backline_writes {": "upstream backline_writes { keepalive 16;"}
IMPATIENT = {"proxy_read_timeout 20s": "proxy_read_timeout 300ms"}
WRITES = [
    ("POST", "/api/spotify/v1/me/player/next"),
    ("PUT", "/v1/me/player/pause"),
    ("PUT", "/api/spotify/v1/me/player/play"),
    ("DELETE", "/v1/me/library?uris=spotify:track:0eGsygTp906u18L0Oimnem"),
]


@pytest.fixture
def api(server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    """The app under gunicorn, with the sandbox."""
    with server(workers=1, TRUSTED_PROXIES="1", TRUSTED_HOSTS=Nginx.HOST) as running:
        yield running


@pytest.fixture
def headers(client: FlaskClient, sandbox: SandboxClient) -> tuple[str, ...]:
    """The headers of a library on a page, with the token of a person who has connected Spotify."""
    register(client)
    connect(client, sandbox)
    return f"Authorization: Bearer {create_token(client)}", f"Origin: {ORIGIN}"


def outcome_is_unknown(response: RawResponse) -> bool:
    assert response.status == 409, response.body
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] is None
    assert may_read(response)
    problem = response.problem
    detail = "The request was sent, so it may have taken effect. Check that before you send it again."
    assert problem.pop("request_id") == response.headers["X-Request-ID"]
    assert problem.pop("instance").startswith(("/api/spotify/v1/me/", "/v1/me/"))
    assert problem == {
        "type": "/problems/spotify-outcome-unknown",
        "title": "Spotify did not respond",
        "status": 409,
        "detail": detail,
        "error": {"status": 409, "message": detail},
    }
    return True


def is_unavailable(response: RawResponse, status: int) -> bool:
    assert response.status == status, response.body
    assert response.problem["type"] == "/problems/service-unavailable"
    assert response.headers.get_all("Retry-After") == ["5"]
    assert may_read(response)
    return True


def test_write_whose_worker_is_killed_takes_effect_once(
    another_nginx: StartNginx, api: Server, headers: tuple[str, ...], sandbox: SandboxClient
) -> None:
    nginx = another_nginx(api.port, KEEPALIVE)
    with ThreadPoolExecutor(1) as pool:
        for method, target in WRITES:
            # nginx keeps connections alive. If it used one of these, it would send a PUT again.
            assert nginx.raw(request("PUT", "/v1/me/player/shuffle?state=true", *headers)).status < 300
            assert nginx.get("/v1/me", *headers).status == 200
            sandbox.clear_calls()
            sandbox.fault(on="api", kind="park", after_effect=True)
            response = pool.submit(nginx.raw, request(method, target, *headers))
            sandbox.wait_for_held(1)
            api.kill_worker()

            assert outcome_is_unknown(response.result())
            sandbox.release()
            # By now, another worker would have sent it again.
            assert eventually(lambda: nginx.get("/api/session").status == 200)
            assert [call["method"] for call in sandbox.calls()] == [method]


def test_only_writes_are_409_when_gunicorn_takes_too_long(
    another_nginx: StartNginx, api: Server, headers: tuple[str, ...], sandbox: SandboxClient
) -> None:
    nginx = another_nginx(api.port, IMPATIENT)
    sandbox.fault(on="api", kind="park", times=None)

    for method, target in WRITES:
        assert outcome_is_unknown(nginx.raw(request(method, target, *headers)))
    assert is_unavailable(nginx.get("/v1/me/player", *headers), 504)
    assert len(sandbox.wait_for_calls(1, path="/v1/me/player/next")) == 1


def test_write_that_was_not_sent_can_be_repeated(another_nginx: StartNginx) -> None:
    without_app = another_nginx(free_port())

    for method, target in WRITES:
        response = without_app.raw(request(method, target, f"Origin: {ORIGIN}"))
        assert is_unavailable(response, 502)
        assert response.problem["error"]["status"] == 502
