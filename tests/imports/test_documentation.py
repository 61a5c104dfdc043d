"""The commands in docs/moving-in.md."""

import json
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from spotipy.cache_handler import CacheFileHandler

from tests.helpers.flows import register
from tests.helpers.servers import ROOT
from tests.imports.running import connections, import_links, json_lines, verify_email

pytestmark = pytest.mark.sqlite_only

DOCUMENT = (ROOT / "docs/moving-in.md").read_text(encoding="utf-8")


def block(section: str, language: str) -> str:
    """Return the first code block of a section."""
    found = re.search(rf"^## {section}$.*?^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_steps_import_the_example(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    verify_email(app, register(client, "ada"))
    register(app.test_client(), "grace")
    (tmp_path / "links.jsonl").write_text(block("The file", "json").replace("…", "token"))
    runner = app.test_cli_runner()
    commands = re.findall(r"`flask (import links .*?)(?: > report.txt)?`$", DOCUMENT, re.MULTILINE)
    arguments = [
        command.replace("links.jsonl", str(tmp_path / "links.jsonl")).split() for command in commands
    ]

    results = [runner.invoke(args=found) for found in arguments]

    assert [result.stdout.splitlines()[-1] for result in results] == [
        "3 would be imported, 0 skipped, 0 invalid",
        "3 imported, 0 skipped, 0 invalid",
    ]


def test_caches_of_spotipy_become_rows(app: Flask, tmp_path: Path) -> None:
    for name in ("mira_t_42", "jonas.k"):
        token = {
            "access_token": "BQ",
            "token_type": "Bearer",
            "expires_in": 3600,
            "refresh_token": f"AQ-{name}",
            "scope": "user-read-email streaming",
            "expires_at": 1_790_000_000,
        }
        CacheFileHandler(cache_path=str(tmp_path / f".cache-{name}")).save_token_to_cache(token)

    subprocess.run(["sh", "-c", block("From spotipy", "sh")], cwd=tmp_path, check=True)

    assert import_links(app, (tmp_path / "links.jsonl").read_bytes())[0] == 0
    found = connections(app)
    assert set(found) == {"mira_t_42", "jonas.k"}
    assert found["jonas.k"].token.scopes == ["user-read-email", "streaming"]


def test_accounts_of_better_auth_become_rows(app: Flask, client: FlaskClient) -> None:
    """`json_build_object` is PostgreSQL's `json_object`, and the rest of the statement is the same."""
    verify_email(app, register(client, "ada"))
    statement = block("From better-auth", "sh").partition("<<'END'\n")[2].rpartition("END")[0]
    with sqlite3.connect(":memory:") as database:
        # As better-auth creates them.
        database.execute('CREATE TABLE "user" (id TEXT PRIMARY KEY, name TEXT, email TEXT)')
        database.execute(
            'CREATE TABLE account (id TEXT PRIMARY KEY, "accountId" TEXT, "providerId" TEXT, "userId" TEXT,'
            ' "accessToken" TEXT, "refreshToken" TEXT, scope TEXT, "createdAt" TEXT, "updatedAt" TEXT)'
        )
        database.execute("INSERT INTO user VALUES ('u1', 'Ada', 'ada@example.com')")
        database.executemany(
            'INSERT INTO account ("id", "accountId", "providerId", "userId", "refreshToken", scope)'
            " VALUES (?, ?, ?, 'u1', ?, ?)",
            [
                ("a1", "ada-87", "spotify", "AQ-ada", "user-read-email,streaming"),
                ("a2", "x", "google", "other", None),
                ("a3", "y", "spotify", None, None),
            ],
        )
        rows = database.execute(statement.replace("json_build_object", "json_object")).fetchall()
    database.close()

    assert import_links(app, json_lines(json.loads(row) for (row,) in rows))[0] == 0
    assert list(connections(app)) == ["ada-87"]
    assert client.get("/api/spotify").json["scopes"] == ["user-read-email", "streaming"]
    # psql is not needed for the syntax of the command.
    done = subprocess.run(["sh", "-n", "-c", block("From better-auth", "sh")], check=False)
    assert done.returncode == 0
