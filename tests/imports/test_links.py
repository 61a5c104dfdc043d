"""`flask import links`: which rows it imports, and what it says about the others."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.imports.importer import BATCH, Importer
from app.imports.rows import ImportRow, RowResult
from app.infra.database import reading, writing
from app.models import AccessToken, GrantState
from app.spotify.connections import claim_anonymous
from tests.conftest import MakeApp
from tests.helpers.children import start_child
from tests.helpers.factories import refresh_due
from tests.helpers.flows import connect, refresh_count, register, send_callback
from tests.helpers.programs import flask
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, ROOT, eventually, process_environment
from tests.imports.running import (
    complete_profiles,
    connections,
    import_links,
    json_lines,
    make_due,
    verify_email,
)

NewClient = Callable[[], FlaskClient]


def test_people_move_in_without_a_new_consent(
    app: Flask, client: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    people = sandbox.seed(3, scopes=["user-read-email", "streaming"])
    ada, grace = client, new_client()
    register(ada, "ada")
    verify_email(app, register(grace, "grace"))
    authorized_at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=100)
    tokens = [{"refresh_token": person["refresh_token"]} for person in people]
    lines = json_lines(
        [
            {"username": "ADA ", **tokens[0]},
            {
                "email": "Grace@Example.com",
                "spotify_id": people[1]["id"],
                "scope": "user-read-email,streaming",
                "authorized_at": authorized_at.isoformat(),
                "access_token": "ignored",
                **tokens[1],
            },
            {"spotify_id": people[2]["id"], **tokens[2]},
        ]
    )
    assert ada.get("/api/spotify").json == {"status": "not_connected"}

    code, output, _ = import_links(app, lines)

    assert (code, output) == (
        0,
        [*(f"line {number}: imported" for number in (1, 2, 3)), "3 imported, 0 skipped, 0 invalid"],
    )
    assert refresh_count(sandbox) == 0  # the import itself calls nothing
    before = grace.get("/api/spotify").json
    assert (before["status"], before["scopes"]) == ("connected", ["user-read-email", "streaming"])
    make_due(app)
    assert refresh_due(app).refreshed == 3
    assert complete_profiles(app) == 3
    for person, owner in zip(people, (ada, grace, None), strict=True):
        row = connections(app)[person["id"]]
        assert (row.account_id, row.profile_due_at) == (person["account_id"], None)
        if owner is not None:
            shown = owner.get("/api/spotify").json
            assert (shown["spotify_id"], shown["account_id"]) == (person["id"], person["account_id"])
            assert owner.get("/api/spotify/v1/me").json["id"] == person["id"]
    assert ada.get("/api/spotify").json["reauthorize_by"] is None
    assert datetime.fromisoformat(grace.get("/api/spotify").json["authorized_at"]) == authorized_at
    make_due(app)
    assert (complete_profiles(app), refresh_count(sandbox)) == (0, 3)

    code, output, _ = import_links(app, lines)

    assert code == 0
    assert output[-1] == "0 imported, 3 skipped, 0 invalid"
    assert output[0] == "line 1: skipped, the connection is live"


INVALID: list[tuple[bytes, str]] = [
    (b"not json", "it is not JSON"),
    (b"\xff\xfe{}", "it is not JSON"),
    (b"[" * 20_000, "it is not JSON"),
    (b"x" * 70_000, "it is too long"),
    (b"[]", "it is not a JSON object"),
    (b'{"refresh_token": "SECRET"}', "it has no username, email, or spotify_id"),
    (b'{"spotify_id": "a"}', "refresh_token is missing"),
    (b'{"spotify_id": "a", "refresh_token": 5}', "refresh_token is missing"),
    (b'{"spotify_id": "a", "refresh_token": "SECR\\u00c9T"}', "refresh_token is missing"),
    (b'{"spotify_id": "\\ud800", "refresh_token": "SECRET"}', "spotify_id must be text"),
    (b'{"spotify_id": 17, "refresh_token": "SECRET"}', "spotify_id must be text"),
    (b'{"spotify_id": "imported:1", "refresh_token": "SECRET"}', "spotify_id is not the id"),
    (b'{"spotify_id": "a", "refresh_token": "SECRET", "scope": ["b"]}', "scope must be text"),
    (b'{"spotify_id": "a", "refresh_token": "SECRET", "authorized_at": 17}', "authorized_at must be a time"),
    (
        b'{"spotify_id": "a", "refresh_token": "SECRET", "authorized_at": "2026-01-01T00:00:00"}',
        "authorized_at must be a time",
    ),
    (
        b'{"spotify_id": "a", "refresh_token": "SECRET", "authorized_at": "0001-01-01T00:00:00+14:00"}',
        "authorized_at must be a time",
    ),
    (
        b'{"spotify_id": "a", "refresh_token": "SECRET", "authorized_at": "2199-01-01T00:00:00Z"}',
        "authorized_at is in the future",
    ),
]


@pytest.mark.sqlite_only
def test_invalid_rows_are_reported_and_left_out(app: Flask) -> None:
    good = b'\xef\xbb\xbf{"spotify_id": "mira", "refresh_token": "SECRET", "scope": null}'

    code, output, error = import_links(
        app,
        b"\n".join(
            [good, b"", *(line for line, _ in INVALID), b'{"spotify_id": "jonas", "refresh_token": "SECRET"}']
        ),
    )

    assert code == 1
    assert output[0] == "line 1: imported"
    for number, (_, reason) in enumerate(INVALID, start=3):
        assert output[number - 2].startswith(f"line {number}: invalid, {reason}")
    assert output[-2:] == [
        f"line {len(INVALID) + 3}: imported",
        f"2 imported, 0 skipped, {len(INVALID)} invalid",
    ]
    assert "SECR" not in "".join(output) + error
    assert set(connections(app)) == {"mira", "jonas"}


def test_no_row_takes_a_connection_or_an_account_over(
    app: Flask, client: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    owner, visitor, mallory = client, new_client(), new_client()
    register(owner, "owner")
    connect(owner, sandbox, person="mira_t_42")
    connect(visitor, sandbox, person="jonas.k")
    register(mallory, "mallory")
    before = connections(app)
    ended = json_lines([{"spotify_id": "mira_t_42", "username": "mallory", "refresh_token": "r"}])
    rows = [
        ({"spotify_id": "mira_t_42", "username": "mallory"}, "connected with another user's account"),
        ({"spotify_id": "mira_t_42"}, "the connection is live"),
        ({"username": "owner"}, "the connection is live"),
        ({"username": "owner", "spotify_id": "aiko-87"}, "the user has connected another Spotify account"),
        ({"spotify_id": "jonas.k", "username": "mallory"}, "the connection is live"),
        ({"username": "nobody"}, "there is no account with this username"),
        ({"email": "nobody@example.com"}, "there is no account with this email address"),
        # Anyone could have registered it before the import.
        ({"email": "mallory@example.com"}, "has not verified this email address"),
        ({"username": "mallory", "email": "owner@example.com"}, "has not verified"),
        (
            {"spotify_id": "aiko-87", "authorized_at": "2026-01-01T00:00:00Z"},
            "Spotify has ended it",
        ),
    ]

    code, output, _ = import_links(app, json_lines([{**row, "refresh_token": "r"} for row, _ in rows]))

    assert code == 0
    for line, (_, reason) in zip(output[:-1], rows, strict=True):
        assert ": skipped, " in line
        assert reason in line
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(state=GrantState.REAUTHORIZATION_REQUIRED))
    assert "another user's account" in import_links(app, ended)[1][0]
    after = connections(app)
    assert {name: (row.id, row.user_id, row.token.grant_id) for name, row in before.items()} == {
        name: (row.id, row.user_id, row.token.grant_id) for name, row in after.items()
    }


@pytest.mark.sqlite_only
def test_username_and_email_of_two_accounts_are_rejected(
    app: Flask, client: FlaskClient, new_client: NewClient
) -> None:
    register(client, "ada")
    verify_email(app, register(new_client(), "grace"))

    row = {"username": "ada", "email": "grace@example.com", "refresh_token": "r"}
    assert (
        import_links(app, json_lines([row]))[1][0]
        == "line 1: skipped, username and email are those of two accounts"
    )


def test_ended_connection_continues_with_the_imported_grant(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox, person="mira_t_42")
    [person] = sandbox.seed(1)
    token = next(found for found in sandbox.seed(1))
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(state=GrantState.REAUTHORIZATION_REQUIRED, failures=3))
    before = connections(app)["mira_t_42"]
    assert client.get("/api/spotify").json["status"] == "reauthorization_required"

    row = {"username": "ada", "refresh_token": token["refresh_token"]}
    assert import_links(app, json_lines([row]))[1][0] == "line 1: imported"

    after = connections(app)["mira_t_42"]
    assert (after.id, after.user_id) == (before.id, before.user_id)
    assert (after.token.state, after.token.failures) == (GrantState.ACTIVE, 0)
    assert after.token.grant_id != before.token.grant_id
    assert client.get("/api/spotify").json["status"] == "connected"
    # The token is another Spotify account's than that of the connection.
    make_due(app)
    refresh_due(app)
    complete_profiles(app)
    assert client.get("/api/spotify").json == {"status": "not_connected"}
    assert person["id"] not in connections(app)


@pytest.mark.sqlite_only
def test_connection_that_signs_its_owner_in_is_left_alone(make_app: MakeApp, sandbox: SandboxClient) -> None:
    """With a token of another account, it would be deleted, and its owner could no longer sign in."""
    app = make_app(SPOTIFY_SIGN_IN="true")
    client = app.test_client()
    url = client.get("/api/spotify/authorize?intent=sign_in").json["authorize_url"]
    send_callback(client, sandbox.consent(url, person="mira_t_42"))
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(state=GrantState.REAUTHORIZATION_REQUIRED))

    output = import_links(app, json_lines([{"spotify_id": "mira_t_42", "refresh_token": "r"}]))[1]

    reason = "the owner signs in with this connection, so only the owner can renew it"
    assert output[0] == f"line 1: skipped, {reason}"


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)  # SQLite locks the whole database
def test_connection_that_gets_an_owner_during_the_import_keeps_them(
    app: Flask, client: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox, person="mira_t_42")
    ada, grace = (register(new_client(), name)["id"] for name in ("ada", "grace"))
    row = {"username": "grace", "spotify_id": "mira_t_42", "refresh_token": "r"}
    found = connections(app)["mira_t_42"]
    with app.app_context(), ThreadPoolExecutor(1) as pool:
        with writing() as db:
            db.execute(sa.update(AccessToken).values(state=GrantState.REAUTHORIZATION_REQUIRED))
        with writing() as db:
            assert claim_anonymous(db, found.id, found.token.grant_id, ada)
            importing = pool.submit(import_links, app, json_lines([row]))
            eventually(_is_waiting_for_a_lock)
        output = importing.result(LONG)[1]

    assert "skipped, the Spotify account is connected with another user's account" in output[0]
    assert connections(app)["mira_t_42"].user_id == ada != grace


def _is_waiting_for_a_lock() -> bool:
    time.sleep(0.2)  # the server remembers the list for 0.1 s after the last query
    waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    with reading() as db:
        return bool(db.scalar(sa.text(waiting)))


@pytest.mark.sqlite_only
def test_deployment_without_an_application_imports_nothing(make_app: MakeApp) -> None:
    app = make_app(SPOTIFY_APPS="own", SPOTIFY_CLIENT_ID="", SPOTIFY_CLIENT_SECRET="")

    code, output, error = import_links(app, json_lines([{"spotify_id": "mira", "refresh_token": "r"}]))

    assert (code, output) == (1, [])
    assert "SPOTIFY_CLIENT_ID" in error
    assert not connections(app)


@pytest.mark.sqlite_only
def test_dry_run_reports_the_same_and_changes_nothing(app: Flask, client: FlaskClient) -> None:
    register(client, "ada")
    rows = [{"username": "ada", "refresh_token": "r"}]
    rows += [{"spotify_id": f"person{number}", "refresh_token": "r"} for number in range(BATCH)]
    lines = json_lines([*rows, *rows[:2], {"username": "nobody", "refresh_token": "r"}])

    planned = import_links(app, lines, "--dry-run")

    assert not connections(app)
    done = import_links(app, lines)
    assert planned[1][:-1] == done[1][:-1]
    assert planned[1][-1] == f"{BATCH + 1} would be imported, 3 skipped, 0 invalid"
    assert len(connections(app)) == BATCH + 1


def test_simultaneous_imports_store_each_row_once(app: Flask) -> None:
    rows = [ImportRow(f"line {number}", None, None, f"person{number}", "r") for number in range(700)]
    services = app.extensions["backline"]

    def run(_: int) -> int:
        with app.app_context():
            importer = Importer(services.token_cipher, services.response_cache, 20)
            return importer.run(rows, lambda _: None)[RowResult.IMPORTED]

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(run, range(2))) == 700
    assert len(connections(app)) == 700


@pytest.mark.sqlite_only
@pytest.mark.settings(REFRESH_RATE="1")
def test_first_refreshes_are_spread_and_leave_others_in_time(app: Flask) -> None:
    """Otherwise, a large import would take all of REFRESH_RATE while other tokens expire."""
    waiting = 50  # for longer than the second import takes to begin
    for numbers in (range(waiting), range(waiting, waiting + 2)):
        rows = [{"spotify_id": f"person{number}", "refresh_token": "r"} for number in numbers]
        import_links(app, json_lines(rows))

    with app.app_context(), reading() as db:
        columns = sa.select(AccessToken.due_at, AccessToken.expires_at).order_by(AccessToken.id)
        delays = [(due - at).total_seconds() for due, at in db.execute(columns) if due is not None]
    assert delays[:3] == pytest.approx([0, 2, 4])
    assert delays[waiting + 1] - delays[waiting] == pytest.approx(2)
    assert delays[waiting] > 0  # after those that are waiting


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_killed_import_is_resumed(app: Flask, env: dict[str, str], tmp_path: Path) -> None:
    rows = [
        {"spotify_id": f"person{number}", "refresh_token": f"token{number}"} for number in range(4 * BATCH)
    ]
    command = [sys.executable, "-m", "flask", "--app", "wsgi:app", "import", "links", "-"]
    with (tmp_path / "report").open("w") as report:
        child = start_child(
            command, cwd=ROOT, env=process_environment(env), stdin=-1, stdout=-1, stderr=report, text=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json_lines(rows[: 3 * BATCH + 100]))
        child.stdin.flush()
        for line in child.stdout:
            if line.startswith(f"line {3 * BATCH}:"):
                break
        child.kill()
        child.wait()
    grants = {name: row.token.grant_id for name, row in connections(app).items()}
    assert set(grants) == {row["spotify_id"] for row in rows[: 3 * BATCH]}

    code, output, progress = import_links(app, json_lines(rows))

    assert (code, output[-1]) == (0, f"{BATCH} imported, {3 * BATCH} skipped, 0 invalid")
    assert progress == "1000 rows done, 0 imported\n2000 rows done, 500 imported\n"
    after = {name: row.token.grant_id for name, row in connections(app).items()}
    assert len(after) == len(rows)
    assert {name: after[name] for name in grants} == grants


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_rows_are_stored_although_the_report_cannot_be_written(
    app: Flask, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "links.jsonl"
    file.write_text(json_lines([{"spotify_id": "ada-87", "refresh_token": "any"}]))

    with Path("/dev/full").open("w") as full:
        done = flask(env, "import", "links", str(file), stdout=full)

    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(connections(app)) == ["ada-87"]


@pytest.mark.sqlite_only
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/mem")
def test_file_that_cannot_be_read_is_an_error_without_a_traceback(app: Flask) -> None:
    # Opening it works, and reading it from the start is an I/O error.
    result = app.test_cli_runner().invoke(args=["import", "links", "/proc/self/mem"])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: The file cannot be read: Input/output error.\n"
