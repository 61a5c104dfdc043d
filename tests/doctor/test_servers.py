"""What `flask doctor` says of servers that work, but not as they should."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from flask import Flask

from app.doctor.clocks import check_clock
from app.doctor.database import describe
from app.doctor.redis_server import check_redis
from app.doctor.result import Status
from app.infra import clock
from app.infra.database import db
from app.infra.redis_client import redis_client
from app.services import services
from tests.conftest import MakeApp

on_mariadb = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("ahead", "words"), [(90, "90 s ahead of"), (-90, "90 s behind"), (0, "agree")])
def test_clocks_are_compared(ahead: float, words: str) -> None:
    result = check_clock("Redis", clock.utc_now().timestamp() + ahead)

    assert words in result.summary
    assert (result.status is Status.WARNING) == (ahead != 0)


@pytest.mark.sqlite_only
def test_redis_without_a_log_gets_a_warning_in_production(app: Flask) -> None:
    with app.app_context():
        client = services().redis
        client.config_set("appendonly", "no")

        in_production = list(check_redis(client, is_production=True))
        in_development = list(check_redis(client, is_production=False))

    assert [result.summary for result in in_production if result.status is Status.WARNING] == [
        "Redis: appendonly is off"
    ]
    assert {result.status for result in in_development} == {Status.OK}


def test_sentinels_that_do_not_respond_are_named_as_the_cause() -> None:
    url = "redis+sentinel://:hunter2@127.0.0.1:1/main"
    result, sentinel = check_redis(redis_client(url), is_production=True, url=url)

    assert (result.status, result.summary) == (Status.FAILURE, "Redis: the Sentinels name no primary")
    assert sentinel.summary.startswith("Redis: Sentinel 127.0.0.1:1: ConnectionError: Error 111 ")
    assert "hunter2" not in sentinel.summary


def doctor(app: Flask) -> str:
    return app.test_cli_runner().invoke(args=["doctor"], catch_exceptions=False).output


@on_mariadb
def test_database_as_it_should_be_gets_no_warning(app: Flask) -> None:
    with app.app_context(), changed("innodb_flush_log_at_trx_commit", "1"):
        report = doctor(app)

    assert not re.findall("^(?:warn|fail)  database.*", report, re.MULTILINE)
    assert "ok    database: transactions are READ-COMMITTED" in report
    assert "ok    database: its time zone is " in report
    assert "ok    database: text is utf8mb4, and names are compared exactly" in report


@on_mariadb
def test_database_that_delays_its_log_or_compares_loosely_is_reported(app: Flask) -> None:
    exact = "ALTER TABLE users MODIFY username VARCHAR(64) COLLATE {} NOT NULL"
    with app.app_context(), changed("innodb_flush_log_at_trx_commit", "2"), changed("time_zone", "'+13:00'"):
        with db.engine.begin() as connection:
            connection.execute(sa.text(exact.format("utf8mb4_general_ci")))
        try:
            report = doctor(app)
        finally:
            with db.engine.begin() as connection:
                connection.execute(sa.text(exact.format("utf8mb4_nopad_bin")))

    assert "warn  database: innodb_flush_log_at_trx_commit is 2" in report
    assert "compared differently in users.username (utf8mb4_general_ci)" in report
    assert "ok    database: its clock and this machine's agree" in report  # whatever its time zone is


@contextmanager
def changed(variable: str, value: str) -> Iterator[None]:
    """Change a variable of the tests' MariaDB, and open a new connection."""
    with db.engine.connect() as connection:
        before = connection.execute(sa.text(f"SELECT @@GLOBAL.{variable}")).scalar_one()
        connection.execute(sa.text(f"SET GLOBAL {variable} = {value}"))
        db.engine.dispose()
        try:
            yield
        finally:
            connection.execute(sa.text(f"SET GLOBAL {variable} = :before"), {"before": before})


@on_mariadb
def test_reason_why_the_database_rejects_us_is_named(make_app: MakeApp, database_url: str) -> None:
    wrong_password = database_url.replace("//root@", "//nobody:wrong@")
    no_database = database_url.replace("/backline?", "/unknown?")

    assert "Check the user name and the password" in doctor(make_app(DATABASE_URL=wrong_password))
    assert "Create the database that DATABASE_URL names" in doctor(make_app(DATABASE_URL=no_database))


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (1045, "Plugin client_ed25519 could not be loaded: no such file", "Install the plugin"),
        (2059, "Authentication plugin 'caching_sha2_password' cannot be loaded", "Install the plugin"),
        (1665, "impossible to write to binary log since BINLOG_FORMAT = STATEMENT", "binlog_format to ROW"),
        (2026, "TLS/SSL error: self-signed certificate", "Check ssl_ca"),
        (2002, "Can't connect to server", "whether the server is running"),
    ],
)
def test_error_of_the_driver_leads_to_advice(code: int, message: str, advice: str) -> None:
    error = sa.exc.OperationalError("SELECT 1", None, Exception(code, message))

    assert advice in describe("database", error).advice


@pytest.mark.sqlite_only
@pytest.mark.settings(SPOTIFY_CLIENT_SECRET="not-the-secret-of-the-sandbox")
def test_wrong_client_secret_is_reported_as_json(app: Flask) -> None:
    report = app.test_cli_runner().invoke(args=["doctor", "--json"])

    failed = [result for result in json.loads(report.output) if result["status"] == "fail"]
    assert report.exit_code == 1
    assert [result["summary"].rpartition(" rejects ")[2] for result in failed] == [
        "this application (invalid_client)"
    ]
    assert "SPOTIFY_CLIENT_SECRET" in failed[0]["advice"]
