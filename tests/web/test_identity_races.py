"""A change is seen by the next request in every process: a hundred races each, between two real processes.

While one process makes a change, the other reads the same rows all the time. As soon as the change has its
response, the other process must show it.

    RACES=1000 script/test tests/web/test_identity_races.py
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from app.infra import row_versions
from app.infra.row_versions import is_label
from tests.helpers.app_process import AppProcess, AppResponse
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD
from tests.helpers.sandbox_client import REDIRECT_URI
from tests.helpers.servers import eventually

END: Any = row_versions._END.command([])[1]  # the script that runs after the COMMIT
RACES = int(os.environ.get("RACES", "100"))

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(600 + RACES),
    pytest.mark.parametrize("database_url", ["mariadb"], indirect=True),
]


@pytest.fixture(scope="module")
def settings(shared_env: dict[str, str]) -> dict[str, str]:
    return {**shared_env, "SPOTIFY_REDIRECT_URI": REDIRECT_URI, "PLAYBACK_TOKEN_ENABLED": "true"}


@pytest.fixture(scope="module")
def writer(settings: dict[str, str]) -> Iterator[AppProcess]:
    """The process that makes changes, in all tests."""
    with AppProcess(settings) as process:
        yield process


@pytest.fixture(scope="module")
def reader(settings: dict[str, str]) -> Iterator[AppProcess]:
    """The process that must show them. It reads until the next test lets it read something else."""
    with AppProcess(settings) as process:
        yield process


@pytest.fixture
def ada(writer: AppProcess) -> AppResponse:
    """A person who is signed in: the response to the registration."""
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    return ok(writer.call("POST", "/api/register", body))


def ok(response: AppResponse) -> AppResponse:
    assert response.status in (200, 201, 204), response
    return response


def count_stale(change: Callable[[int], object], is_shown: Callable[[], object], races: int = RACES) -> int:
    """Make a change in each race. Returns how often it was not shown afterwards."""
    stale = 0
    for number in range(races):
        expected = change(number)
        stale += is_shown() != expected
    return stale


def test_profile_change_is_never_stale(writer: AppProcess, reader: AppProcess, ada: AppResponse) -> None:
    reader.start_reading("/api/session", ada.cookie or "")

    def change(number: int) -> str:
        name = f"ada{number}"
        ok(writer.call("PATCH", "/api/user", {"username": name}, ada.cookie))
        return name

    def shown() -> object:
        return ok(reader.call("GET", "/api/user", cookie=ada.cookie)).json["username"]

    assert count_stale(change, shown) == 0


def test_password_change_is_never_stale(
    writer: AppProcess, reader: AppProcess, ada: AppResponse, redis_url: str
) -> None:
    """The new epoch alone ends an old session: it is put back into Redis."""
    password, cookie, earlier = PASSWORD, ada.cookie, None
    reader.start_reading("/api/session", cookie or "")

    def change(number: int) -> tuple[int, int]:
        nonlocal password, cookie, earlier
        new = f"a long sentence, number {number}"
        stored = {key: store.get(key) for key in store.keys("session:*")}
        body = {"current_password": password, "new_password": new}
        response = ok(writer.call("PUT", "/api/user/password", body, cookie))
        earlier, cookie, password = cookie, response.cookie, new
        for key, value in stored.items():
            store.set(key, value, ex=60)
        return 401, 200

    def shown() -> tuple[int, int]:
        first, second = (reader.call("GET", "/api/user", cookie=each).status for each in (earlier, cookie))
        return first, second

    with redis.Redis.from_url(redis_url) as store:
        assert count_stale(change, shown) == 0


def test_sign_out_everywhere_is_never_stale(writer: AppProcess, reader: AppProcess, ada: AppResponse) -> None:
    laptop = phone = ada.cookie
    reader.start_reading("/api/session", ada.cookie or "")

    def change(_number: int) -> int:
        nonlocal laptop, phone
        phone = ok(writer.call("POST", "/api/login", {"login": "ada", "password": PASSWORD})).cookie
        ok(reader.call("GET", "/api/user", cookie=phone))
        ended = writer.call("DELETE", "/api/user/sessions", {"current_password": PASSWORD}, laptop)
        laptop = ok(ended).cookie  # a new id
        return 401

    def shown() -> int:
        return reader.call("GET", "/api/user", cookie=phone).status

    assert count_stale(change, shown) == 0


def test_disconnect_is_never_stale(writer: AppProcess, reader: AppProcess, ada: AppResponse) -> None:
    reader.start_reading("/api/session", ada.cookie or "")

    def change(number: int) -> str:
        writer.store_grant(ada.json["id"], f"token {number}")
        assert reader.call("GET", "/api/spotify", cookie=ada.cookie).json["status"] == "connected"
        ok(writer.call("DELETE", "/api/spotify", None, ada.cookie))
        return "not_connected"

    def shown() -> object:
        return reader.call("GET", "/api/spotify", cookie=ada.cookie).json["status"]

    assert count_stale(change, shown) == 0


def test_new_consent_is_never_stale(writer: AppProcess, reader: AppProcess, ada: AppResponse) -> None:
    writer.store_grant(ada.json["id"], "the first token")
    reader.start_reading("/api/spotify/token", ada.cookie or "")

    def change(number: int) -> str:
        writer.store_grant(ada.json["id"], f"token {number}")
        return f"token {number}"

    def shown() -> object:
        return ok(reader.call("GET", "/api/spotify/token", cookie=ada.cookie)).json["access_token"]

    assert count_stale(change, shown) == 0


# --- personal access tokens -----------------------------------------------------------------------


def new_token(writer: AppProcess, reader: AppProcess, cookie: str | None, password: str = PASSWORD) -> Any:
    """Create a token, which the other process remembers and reads with all the time."""
    new = {"name": "races", "rights": ["account:read"], "current_password": password}
    created = ok(writer.call("POST", "/api/user/tokens", new, cookie)).json
    reader.start_reading("/api/user", token=created["token"])
    for _ in range(2):
        ok(reader.call("GET", "/api/session", token=created["token"]))
    return created


def test_revocation_of_a_token_is_never_stale(
    writer: AppProcess, reader: AppProcess, ada: AppResponse
) -> None:
    token: Any = None

    def change(_number: int) -> bool:
        nonlocal token
        token = new_token(writer, reader, ada.cookie)
        ok(writer.call("DELETE", f"/api/user/tokens/{token['id']}", None, ada.cookie))
        return False

    def is_valid() -> bool:
        return reader.call("GET", "/api/user", token=token["token"]).status == 200

    assert count_stale(change, is_valid, RACES // 2) == 0


def test_token_is_never_valid_after_a_password_change(
    writer: AppProcess, reader: AppProcess, ada: AppResponse
) -> None:
    password, cookie = PASSWORD, ada.cookie
    token: Any = None

    def change(number: int) -> bool:
        nonlocal password, cookie, token
        token = new_token(writer, reader, cookie, password)
        new = f"a long sentence, number {number}"
        body = {"current_password": password, "new_password": new}
        cookie, password = ok(writer.call("PUT", "/api/user/password", body, cookie)).cookie, new
        return False

    def is_valid() -> bool:
        return reader.call("GET", "/api/user", token=token["token"]).status == 200

    assert count_stale(change, is_valid, RACES // 2) == 0


# --- failures ------------------------------------------------------------------------------------


def test_change_of_a_process_that_died_after_its_commit_is_shown(
    reader: AppProcess, ada: AppResponse, settings: dict[str, str]
) -> None:
    reader.start_reading("/api/session", ada.cookie or "")
    ok(reader.call("GET", "/api/user", cookie=ada.cookie))

    with AppProcess(settings) as writer:
        writer.die_after_next_commit()
        writer.send("PATCH", "/api/user", {"username": "lovelace"}, ada.cookie)
        writer.wait_until_dead()

    for _ in range(100):
        assert ok(reader.call("GET", "/api/user", cookie=ada.cookie)).json["username"] == "lovelace"


def test_change_is_shown_although_redis_was_lost_after_its_commit(
    settings: dict[str, str], reader: AppProcess, redis_url: str
) -> None:
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    cookie = ok(reader.call("POST", "/api/register", body)).cookie
    reader.start_reading("/api/session", cookie or "")
    with FaultProxy(redis_url.removeprefix("unix://")) as proxy, redis.Redis.from_url(redis_url) as store:
        through_proxy = {**settings, "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
        with AppProcess(through_proxy) as writer:
            eventually(partial(changes, writer, "king", cookie))  # before the COMMIT, Redis may be slow
            for name in ("lovelace", "countess", "byron"):
                proxy.hold("up", END)  # what follows the COMMIT
                eventually(partial(changes, writer, name, cookie))
                assert store.keys("version:user:*")
                assert all(not is_label(store.get(key)) for key in store.keys("version:user:*"))
                assert ok(reader.call("GET", "/api/user", cookie=cookie)).json["username"] == name
                proxy.cut()
                proxy.release()


def changes(writer: AppProcess, name: str, cookie: str | None) -> bool:
    return writer.call("PATCH", "/api/user", {"username": name}, cookie).status == 200
