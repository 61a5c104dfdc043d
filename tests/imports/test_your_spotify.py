"""`flask import your-spotify`, with a server that speaks MongoDB's wire protocol."""

import logging
import re
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.imports import your_spotify
from tests.conftest import cannot_run
from tests.helpers.children import start_child
from tests.helpers.factories import refresh_due
from tests.helpers.flows import refresh_count, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Unavailable, eventually, free_port
from tests.imports.running import complete_profiles, connections, make_due

pytestmark = pytest.mark.sqlite_only

DOCUMENT = (ROOT / "docs/moving-in.md").read_text(encoding="utf-8")


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Any]:
    """The collection of your_spotify's users."""
    if find_spec("nx_27017") is None:
        cannot_run(Unavailable("the Python package nx-27017 is not installed: script/bootstrap --dev"))
    import pymongo

    port = free_port()
    command = [sys.executable, "-c", "from nx_27017.nx_27017 import main; main()", "--port", str(port)]
    files = [f"--log-file={tmp_path}/log", f"--pid-file={tmp_path}/pid"]
    start_child([*command, "--db", "memory", *files], stderr=-3)
    client: pymongo.MongoClient[Any] = pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=20_000)
    with client:
        assert eventually(lambda: client.admin.command("ping"))
        yield client["your_spotify"]["users"]


def account(name: str, spotify_id: str, refresh_token: str | None) -> dict[str, Any]:
    """Return an account as your_spotify stores it (apps/server/src/database/schemas/user.ts)."""
    return {
        "username": name,
        "admin": False,
        "spotifyId": spotify_id,
        "expiresIn": 1_790_000_000_000,
        "accessToken": "BQ-SECRET",
        "refreshToken": refresh_token,
        "lastTimestamp": 1_780_000_000_000,
        "tracks": [],
        "settings": {"historyLine": True, "nbElements": 10, "darkMode": "follow", "timezone": None},
        "lastImport": None,
        "publicToken": None,
    }


def run(app: Flask, *arguments: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    result = app.test_cli_runner().invoke(args=["import", "your-spotify", *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_accounts_are_imported_as_documented(
    app: Flask, client: FlaskClient, sandbox: SandboxClient, users: Any
) -> None:
    people = sandbox.seed(2)
    register(client, "ada")
    logging.getLogger("pymongo.command").setLevel(logging.WARNING)
    users.insert_many(
        [
            account("ada", people[0]["id"], people[0]["refresh_token"]),
            account("grace", people[1]["id"], people[1]["refresh_token"]),
            account("gone", "gone", None),
            account("endless", "x" * 1000, "AQ"),
        ]
    )
    logging.getLogger("pymongo.command").setLevel(logging.NOTSET)
    logging.getLogger("pymongo").setLevel(logging.NOTSET)
    host, port = users.database.client.address
    [command] = re.findall(r"^flask import your-spotify (.*)$", DOCUMENT, re.MULTILINE)
    arguments = command.replace("ada-87", people[0]["id"]).split()
    url = arguments[0].replace("127.0.0.1:27017", f"{host}:{port}")
    assert url != arguments[0]

    planned = run(app, url, *arguments[1:], "--dry-run")
    code, output, error = run(app, "-", *arguments[1:], stdin=f"{url}\n")

    assert (code, output.splitlines()) == (
        1,
        [
            f"user 1 ({people[0]['id']}): imported",
            f"user 2 ({people[1]['id']}): imported",
            "user 3 (gone): invalid, refresh_token is missing or invalid",
            "user 4: invalid, spotify_id must be text of at most 255 printable characters",
            "2 imported, 0 skipped, 2 invalid",
        ],
    )
    assert planned[1].splitlines()[:-1] == output.splitlines()[:-1]
    assert people[0]["refresh_token"] not in output + error
    assert client.get("/api/spotify").json["reauthorize_by"] is None
    make_due(app)
    refresh_due(app)
    complete_profiles(app)
    assert client.get("/api/spotify").json["account_id"] == people[0]["account_id"]
    assert connections(app)[people[1]["id"]].user_id is None
    assert "2 skipped, 2 invalid" in run(app, url, *arguments[1:])[1]
    assert refresh_count(sandbox) == 2


def test_unusable_url_is_reported_without_its_password(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("pymongo") is None:
        cannot_run(Unavailable("the Python package pymongo is not installed: script/bootstrap --mongodb"))
    monkeypatch.setattr(your_spotify, "_CONNECT_SECONDS", 0.2)
    for url in (
        "mongodb://root:hunter2@127.0.0.1:1/your_spotify",
        "mongodb://root:hunter2@127.0.0.1:port/",
        "mongodb://root:hunter2@@127.0.0.1/",
        "mongodb://root:hunter2@127.0.0.1/?tls=true&tlsCAFile=/nowhere/ca.pem",
        "http://root:hunter2@127.0.0.1/",
        "hunter2",
    ):
        code, output, error = run(app, url)
        assert code in (1, 2), url
        assert error
        assert "hunter2" not in output + error
    assert run(app, "-", stdin=b"\xff\n")[0] == 1
    assert run(app, "mongodb://127.0.0.1/", "--owner", "ada")[0] == 2


@pytest.mark.parametrize("reply", [b"", b"\x0f\0\0\0\x02a\0\xff\xff\xff\x7fzz\0\0"], ids=["none", "no BSON"])
def test_server_that_fails_after_the_greeting_is_reported(
    app: Flask, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    if find_spec("pymongo") is None:
        cannot_run(Unavailable("the Python package pymongo is not installed: script/bootstrap --mongodb"))
    monkeypatch.setattr(your_spotify, "_READ_SECONDS", 0.2)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), GreetingServer) as server:
        server.daemon_threads, server.reply = True, reply  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, output, error = run(app, f"mongodb://127.0.0.1:{server.server_address[1]}/your_spotify")
        server.shutdown()

    assert (code, output) == (1, "")
    assert error.startswith("Error: MongoDB cannot be read (")


class GreetingServer(socketserver.StreamRequestHandler):
    """A MongoDB server that greets, and has one reply to everything else, or none."""

    def handle(self) -> None:
        import bson

        greeting = bson.encode({"ok": 1, "helloOk": True, "isWritablePrimary": True, "maxWireVersion": 21})
        while header := self.rfile.read(16):
            length, number, _, opcode = struct.unpack("<4i", header)
            is_greeting = b"hello" in (body := self.rfile.read(length - 16)) or b"ismaster" in body
            if not is_greeting and not self.server.reply:  # type: ignore[attr-defined]
                continue
            document = greeting if is_greeting else self.server.reply  # type: ignore[attr-defined]
            # OP_QUERY is answered by OP_REPLY, and OP_MSG by OP_MSG.
            start = struct.pack("<IqII", 8, 0, 0, 1) if opcode == 2004 else struct.pack("<IB", 0, 0)
            reply = start + document
            kind = 1 if opcode == 2004 else opcode
            self.wfile.write(struct.pack("<4i", 16 + len(reply), 1, number, kind) + reply)


def test_missing_pymongo_is_named_with_the_command_that_installs_it(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymongo", None)

    code, _, error = run(app, "mongodb://127.0.0.1/")

    assert (code, error) == (
        1,
        "Error: pymongo is not installed. Install it with: script/bootstrap --mongodb\n",
    )
