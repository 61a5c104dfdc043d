"""The page for operators: its numbers, and that only this machine can open it."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.clock import utc_now
from app.infra.database import db
from app.infra.hourly_counts import HOUR, last_day
from app.models import AccessToken, TokenRefresh
from app.models.token_refresh import Outcome
from app.operator.plots import Series, stacked_bars
from app.spotify.tokens import refresh_history
from app.spotify.tokens.refresh_history import RefreshHistory
from tests.helpers.flows import PASSWORD, connect, register, slug
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.sqlite_only


def numbers(html: str) -> dict[str, int]:
    """Return the numbers in the tables by their names."""
    found = re.findall(r'<th scope="row">(?:<svg.*?</svg>)?([^<]+)</th><td>([\d,]+)</td>', html)
    return {name: int(number.replace(",", "")) for name, number in found}


def insert_attempts(app: Flask, attempts: dict[Outcome | None, int], *, hours_ago: int) -> None:
    begun = utc_now().replace(minute=30) - hours_ago * HOUR
    ids = (f"{hours_ago}-{outcome}-{n}" for outcome, count in attempts.items() for n in range(count))
    rows = [
        {
            "spotify_user_id": 1,
            "grant_id": attempt,
            "generation": 0,
            "attempt_id": attempt,
            "outcome": None if "None" in attempt else attempt.split("-")[1],
            "started_at": begun,
        }
        for attempt in ids
    ]
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.insert(TokenRefresh), rows)


def test_page_shows_the_last_day(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    client.get("/api/spotify/v1/me", headers={"X-Requested-With": "test"})
    for password, times in (("not the password", 11), (PASSWORD, 1)):
        visitor = new_client()
        visitor.environ_base["REMOTE_ADDR"] = f"192.0.2.{times}"
        for _ in range(times):
            visitor.post("/api/login", json={"login": "ada", "password": password})
    insert_attempts(app, {Outcome.REFRESHED: 1200, Outcome.UNAVAILABLE: 2, None: 5}, hours_ago=3)
    insert_attempts(app, {Outcome.AGED: 1, Outcome.INVALID_GRANT: 2}, hours_ago=22)
    insert_attempts(app, {Outcome.REFRESHED: 7}, hours_ago=25)
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.update(AccessToken).values(due_at=utc_now() - timedelta(days=7, hours=1)))

    page = client.get("/operator")

    assert page.content_type == "text/html; charset=utf-8"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert numbers(page.text) == {
        "active": 1,
        "suspect": 0,
        "reauthorization required": 0,
        "refreshed": 1200,
        "superseded by another": 0,
        "failed, to be repeated": 2,
        "rejected by Spotify": 3,
        "signed in": 1,
        "wrong password": 10,
        "throttled": 1,
        "guesses": 1,
    }
    assert '<p class="number">7 days</p>' in page.text
    assert "1,200 refreshed, 2 failed, to be repeated</title>" in page.text
    assert "<p>Spotify accepts calls.</p>" in page.text
    for url in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert client.get(url).status_code == 200


@pytest.mark.parametrize("path", ["/operator", "/operator/style.css", "/operator/update.js"])
@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("192.0.2.7", {}),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {"Host": "api.example.com"}),
        ("127.0.0.1", {"Host": "127.0.0.1.example.com:5000"}),
    ],
)
def test_others_cannot_open_the_page(
    client: FlaskClient, path: str, address: str, headers: dict[str, str]
) -> None:
    response = client.get(path, headers=headers, environ_base={"REMOTE_ADDR": address})

    assert (response.status_code, slug(response)) == (404, "not-found")


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "[::1]:5000"])
@pytest.mark.settings(TRUSTED_PROXIES="1", REDIS_URL="redis://127.0.0.1:1/0")
def test_page_says_what_is_not_available(client: FlaskClient, host: str) -> None:
    page = client.get("/operator", headers={"Host": host}, environ_base={"REMOTE_ADDR": "::1"})

    assert page.status_code == 200
    assert "Redis is not available." in page.text
    assert numbers(page.text).keys() >= {"active", "refreshed"}
    assert "signed in" not in numbers(page.text)


def test_hours_that_are_over_are_counted_once(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    history, hours = RefreshHistory(), last_day(utc_now())
    with app.app_context():
        assert history.read(hours) == [{}] * 24
        insert_attempts(app, {Outcome.REFRESHED: 1}, hours_ago=5)
        assert history.read(hours) == [{}] * 24
        assert {"refreshed": 1} in RefreshHistory().read(hours)

        monkeypatch.setattr(refresh_history, "MAX_SECONDS", 0.0)
        assert RefreshHistory().read(hours) == [None] * 24
        assert history.read(hours)[:22] == [{}] * 22


def test_small_numbers_are_visible_beside_large_ones() -> None:
    hours = last_day(utc_now())
    many, few = [0] * 24, [0] * 24
    many[3], few[3] = 900_000, 1

    plot = stacked_bars(hours, [Series("many", "good", many), Series("few", "bad", few)])

    assert [value for _, value in plot.lines] == [0, 500_000, 1_000_000]
    assert [len(bar.segments) for bar in plot.bars] == [0] * 3 + [2] + [0] * 20
    large, small = plot.bars[3].segments
    assert small.height == 1.5
    assert large.height > 90
    assert plot.bars[3].text.endswith(": 900,000 many, 1 few")


def test_counts_are_kept_for_a_day(app: Flask) -> None:
    store: redis.Redis = app.extensions["backline"].redis
    app.extensions["backline"].hourly_counts.add("login:ok")

    [key] = store.keys("hourly:*")
    assert 24 * 3600 < store.ttl(key) <= 25 * 3600
