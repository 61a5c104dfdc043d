"""What `flask doctor` says of servers that work, but not as they should."""

import json

import pytest
import sqlalchemy as sa
from flask import Flask

from app.doctor.clocks import check_clock
from app.doctor.redis_server import check_redis
from app.doctor.result import Status
from app.infra import clock
from app.infra.database import db
from app.services import services


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


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
@pytest.mark.parametrize(("value", "is_safe"), [(1, True), (2, False)])
def test_database_that_delays_its_log_gets_a_warning(app: Flask, value: int, is_safe: bool) -> None:
    with app.app_context(), db.engine.connect() as connection:
        before = connection.execute(sa.text("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit")).scalar_one()
        connection.execute(sa.text(f"SET GLOBAL innodb_flush_log_at_trx_commit = {value}"))
        try:
            report = app.test_cli_runner().invoke(args=["doctor"])
        finally:
            connection.execute(sa.text(f"SET GLOBAL innodb_flush_log_at_trx_commit = {before}"))

    assert ("innodb_flush_log_at_trx_commit is 2" in report.output) is not is_safe
    assert "ok    database: its clock and this machine's agree" in report.output


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
