"""Times that were written while a clock was ahead neither block anyone nor keep anything valid."""

from datetime import timedelta

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.auth import email_tokens
from app.errors import InvalidToken
from app.infra import database
from app.infra.database import reading, writing
from app.infra.http_client import HttpResponse
from app.mail import outbox
from app.models import MailKind, OneTimeToken, OutgoingMail, Purpose, User
from app.spotify.gateway import cache
from app.spotify.oauth import state as oauth_state
from app.web.sessions.index import MAX_SESSIONS
from tests.helpers.cached_reads import lead
from tests.helpers.factories import run_maintenance
from tests.helpers.flows import login, register, start_authorization
from tests.helpers.route_matrix import wait_for_background_work

TEN_DAYS = timedelta(days=10)
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    found: redis.Redis = app.extensions["backline"].redis
    return found


def redis_time(store: redis.Redis, ahead: timedelta = TEN_DAYS) -> float:
    """Return the seconds since 1970 on a clock that is ahead."""
    return float(store.time()[0]) + ahead.total_seconds()


def log_in_with_wrong_password(client: FlaskClient) -> int:
    return client.post("/api/login", json={"login": "ada", "password": "not the password"}).status_code


@SQLITE
def test_wait_after_wrong_passwords_is_not_extended(client: FlaskClient, store: redis.Redis) -> None:
    register(client, "ada")
    assert 429 in [log_in_with_wrong_password(client) for _ in range(20)]
    [pair], [address] = store.keys("throttle:pair:*"), store.keys("throttle:address:*")
    store.hset(pair, "until", int(redis_time(store) * 1000))
    store.set(address, 1000, px=TEN_DAYS)

    assert login(client, "ada").status_code == 200


@SQLITE
def test_full_counter_of_an_action_starts_again(client: FlaskClient, store: redis.Redis) -> None:
    def resets() -> int:
        return client.post("/api/password-reset", json={"email": "ada@example.com"}).status_code

    resets()
    counts = [key for key in store.keys("throttle:*") if store.type(key) == b"string"]
    assert counts
    for key in counts:
        store.set(key, 1000, ex=3600)
    assert resets() == 429

    for key in counts:
        store.pexpire(key, TEN_DAYS)

    assert resets() != 429


@SQLITE
def test_unfinished_authorizations_do_not_block_new_ones(client: FlaskClient, store: redis.Redis) -> None:
    start_authorization(client)
    [unfinished] = store.keys("throttle:authorizations:*")
    later = redis_time(store) * 1000
    store.zadd(unfinished, {f"one-{number}": later for number in range(oauth_state.MAX_PER_ADDRESS)})
    each = b"throttle:each:{" + unfinished + b"}"
    [binding] = store.hkeys(each)
    store.hset(each, binding, oauth_state.MAX_PER_SESSION)
    store.pexpire(each, TEN_DAYS)

    start_authorization(client)


@SQLITE
def test_new_session_is_not_evicted_as_the_oldest(client: FlaskClient, store: redis.Redis) -> None:
    user = register(client, "ada")
    later = redis_time(store, timedelta(days=400))
    store.zadd(
        f"sessions-of:{user['id']}", {f"session:{number:064x}": later for number in range(MAX_SESSIONS)}
    )

    assert login(client, "ada").status_code == 200

    assert client.get("/api/user").status_code == 200
    assert len(client.get("/api/user/sessions").json) == 1


@SQLITE
def test_cached_responses_make_room_for_new_ones(app: Flask, store: redis.Redis) -> None:
    cached = app.extensions["backline"].response_cache
    later = redis_time(store) * 1000
    store.zadd("shared:{7}:index", {f"{number:032x}": later for number in range(cache.MAX_ENTRIES)})
    keys = [f"search?q={number}" for number in range(30)]
    for key in keys:
        read = cache.Read.of(7, key)
        lookup = lead(cached, read)
        cached.store(read, HttpResponse(200, {}, b""), started=lookup.now, ttl=60)

    assert [lead(cached, cache.Read.of(7, key)).state for key in keys] == [cache.State.HIT] * 30


@SQLITE
def test_learned_budget_grows(app: Flask, store: redis.Redis) -> None:
    budget = app.extensions["backline"].rate_limiter._budget
    store.hset(budget.limit_key, mapping={"limit": 10, "since": int(redis_time(store) * 1000)})

    assert budget.spend(7, is_poll=False) == 0

    assert int(store.hget(budget.limit_key, "since")) <= redis_time(store, timedelta(0)) * 1000 + 1000


def test_mailed_token_is_not_valid_for_longer(client: FlaskClient, app: Flask) -> None:
    user_id = register(client, "ada")["id"]
    wait_for_background_work(app)  # sending an email issues a token
    with app.app_context(), writing() as db:
        issued = email_tokens.issue(db, user_id, Purpose.PASSWORD_RESET)
        assert issued is not None
        email_tokens.reserve_address(db, db.get_one(User, user_id))
    with app.app_context(), reading() as db:
        email_tokens.owner_of(db, issued.token, Purpose.PASSWORD_RESET)
        assert email_tokens.is_reserved(db, {"ada@example.com"}, except_for=None)

    with app.app_context(), writing() as db:
        ahead = list(db.scalars(sa.select(OneTimeToken.id)))
        db.execute(sa.update(OneTimeToken).values(expires_at=database.db_now(db) + TEN_DAYS))
    with app.app_context(), reading() as db:
        with pytest.raises(InvalidToken):
            email_tokens.owner_of(db, issued.token, Purpose.PASSWORD_RESET)
        assert not email_tokens.is_reserved(db, {"ada@example.com"}, except_for=None)

    with app.app_context():
        run_maintenance(app)
    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(OneTimeToken.id).where(OneTimeToken.id.in_(ahead))).all() == []


@SQLITE
def test_delivery_of_an_email_is_not_retried_for_longer(app: Flask) -> None:
    with app.app_context(), writing() as db:
        mail = outbox.add(db, MailKind.PASSWORD_CHANGED, to="ada@example.com")
        assert mail is not None
        mail.due_at += timedelta(minutes=15)  # so that it is not delivered during the test
        mail.expires_at += TEN_DAYS

    with app.app_context():
        run_maintenance(app)

    with app.app_context(), reading() as db:
        end = db.scalars(sa.select(OutgoingMail.expires_at)).one()
        assert end <= database.db_now(db) + timedelta(days=4)
