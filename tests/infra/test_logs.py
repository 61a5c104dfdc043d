"""Logs: whole lines that nobody can forge, that say who and where, and that hold up nobody."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import IO, Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import logs, stderr_handler
from app.web.access import public
from script.supervisor import dies_with_parent
from tests.conftest import SETTINGS
from tests.helpers import secret_scanner
from tests.helpers.flows import register
from tests.helpers.sandbox_client import SandboxClient, answer_of
from tests.helpers.servers import ROOT, eventually, free_port, process_environment
from tests.system.test_secrets_canary import expire

HOSTILE = [
    'x\n{"event": "signed_in", "user_id": 1}',
    "x\r\n12:00:00 INFO    signed_in user_id=1",
    "\x1b[31mred\x1b[0m \x9b2J \x7f\x08",
    'x" user_id="1',
    "a\u2028b\u2029c\x85d\x0b\x0c\x1ce",
    "\u202egnp.exe \ud800 \x00",
]
REQUEST_FIELDS = {"time", "level", "logger", "event", "method", "route", "status", "outcome", "duration_ms"}
WHO_AND_WHERE = {"request_id", "client", "user_id"}

# Enough for a process that needs neither database nor Redis.
ALONE = {
    **SETTINGS,
    "DATABASE_URL": "sqlite:////nowhere/backline.sqlite3",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "LOG_LEVEL": "INFO",
}


def record(text: str) -> logging.LogRecord:
    """A record that has this text wherever there is room for text."""
    error = ValueError(text)
    trace = (ValueError, error, None)
    fields = {"name": text, "levelname": "INFO", "msg": "%s", "args": (text,), "exc_info": trace}
    return logging.makeLogRecord({**fields, "field": text, "many": [text, {text: text}], text: "a name"})


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_j2_json_is_one_line_of_ascii_whatever_is_in_it(text: str) -> None:
    line = logs.JsonFormatter().format(record(text))

    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert (read["event"], read["logger"], read["field"], read[text]) == (text, text, text, "a name")


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_j2_a_terminal_sees_one_line_and_indented_below_it_the_traceback(text: str) -> None:
    first, *below = logs.ConsoleFormatter().format(record(text)).split("\n")

    assert json.dumps(text)[1:-1].replace("\x7f", "\\u007f") in first
    assert " user_id=1" not in first.replace(json.dumps(text)[1:-1], "")
    assert all(line.isprintable() for line in [first, *below])
    assert below
    assert all(line.startswith("    ") for line in below)


def test_j2_an_event_of_ours_stands_plainly_on_the_console() -> None:
    written = logging.makeLogRecord({"levelname": "INFO", "msg": "signed_in", "user_id": 1})

    assert logs.ConsoleFormatter().format(written).endswith("INFO    signed_in user_id=1")


@pytest.mark.processes
def test_j2_what_libraries_and_python_say_is_a_line_as_well() -> None:
    done = run(
        """
        import logging, warnings, wsgi
        logging.getLogger("a.library").warning("said %s", "x\\ny")
        warnings.warn("old\\nnews")
        logging.getLogger("gunicorn.error").warning("x\\ny")
        """
    )

    assert done.returncode == 0
    names = [json.loads(line)["logger"] for line in done.stderr.splitlines()]
    assert names == ["a.library", "py.warnings", "gunicorn.error"]


# --- what a line says -----------------------------------------------------------------------------


@pytest.fixture
def lines(app: Flask) -> Iterator[list[dict[str, Any]]]:
    """What the app logs, as an operator reads it."""
    read: list[dict[str, Any]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            read.append(json.loads(self.format(record)))

    reader, root = Reader(), logging.getLogger()
    reader.setFormatter(logs.JsonFormatter())
    level = root.level
    root.addHandler(reader)
    root.setLevel("INFO")
    yield read
    root.removeHandler(reader)
    root.setLevel(level)


def requests_in(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.parametrize(
    ("method", "path", "route", "status", "outcome"),
    [
        ("GET", "/api/session", "/api/session", 200, "ok"),
        ("GET", "/api/user", "/api/user", 401, "not-signed-in"),
        ("GET", "/api/nothing", None, 404, "not-found"),
        ("POST", "/api/login", "/api/login", 422, "validation-error"),
        ("GET", "/api/fails/7", "/api/fails/<int:number>", 500, "internal-error"),
    ],
)
def test_j3_a_request_is_one_line_with_all_its_fields(
    app: Flask,
    client: FlaskClient,
    lines: list[dict[str, Any]],
    method: str,
    path: str,
    route: str | None,
    status: int,
    outcome: str,
) -> None:
    @app.get("/api/fails/<int:number>")
    @public
    def fails(number: int) -> None:
        raise ZeroDivisionError

    response = client.open(
        path, method=method, json={}, query_string={"code": "c"}, environ_base={"REMOTE_ADDR": "192.0.2.7"}
    )

    [line] = requests_in(lines)
    assert line.keys() == REQUEST_FIELDS | WHO_AND_WHERE
    assert line["time"].endswith("+00:00")
    assert (line["method"], line["route"]) == (method, route)
    assert (line["status"], line["outcome"]) == (response.status_code, outcome) == (status, outcome)
    assert (line["client"], line["user_id"]) == ("192.0.2.7", None)
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert line["duration_ms"] >= 0


def test_j3_every_line_of_a_request_says_who_and_where(
    app: Flask, client: FlaskClient, lines: list[dict[str, Any]]
) -> None:
    @app.get("/api/tells")
    @public
    def tells() -> str:
        logging.getLogger("a.library").warning("told", extra={"client": "its own"})
        logging.getLogger("app.somewhere").warning("told")
        return ""

    user = register(client)
    lines.clear()
    response = client.get("/api/tells")

    about = {"request_id": response.headers["X-Request-ID"], "client": "127.0.0.1", "user_id": user["id"]}
    theirs, ours, last = lines
    assert about | {"client": "its own"} == {name: theirs[name] for name in WHO_AND_WHERE}
    assert (
        about == {name: ours[name] for name in WHO_AND_WHERE} == {name: last[name] for name in WHO_AND_WHERE}
    )


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_j3_a_line_before_the_session_is_open_and_an_answer_that_could_not_keep_its_session(
    client: FlaskClient, lines: list[dict[str, Any]]
) -> None:
    client.set_cookie("backline_session", "A" * 43)

    away = client.get("/api/session")
    client.delete_cookie("backline_session")
    unsaved = client.get("/api/spotify/authorize")

    first = next(line for line in lines if line["event"] == "sessions_unavailable")
    assert (first["request_id"], first["user_id"]) == (away.headers["X-Request-ID"], None)
    assert [(line["status"], line["outcome"]) for line in requests_in(lines)] == [
        (answer.status_code, "service-unavailable") for answer in (away, unsaved)
    ]


def test_j3_to_log_is_not_to_use_the_session(app: Flask, lines: list[dict[str, Any]]) -> None:
    with app.test_request_context("/api/session") as context:
        context.session["user_id"] = 7
        used = context.session
        used.accessed = used.modified = False
        logging.getLogger("app.somewhere").warning("told")

        assert lines[-1]["user_id"] == 7
        assert not used.accessed
        assert not used.modified


# --- nobody reads, or the disk is full ------------------------------------------------------------


def program(code: str) -> list[str]:
    return [sys.executable, "-c", dedent(code)]


def run(code: str, stderr: int | IO[bytes] = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run this in a process of the app's. One that hangs is an error."""
    return subprocess.run(
        program(code),
        cwd=ROOT,
        env=process_environment(ALONE),
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=60,
        check=False,
    )


@contextmanager
def nobody_reads() -> Iterator[tuple[int, int]]:
    """A pipe: its end to read, and the one to write. It is full after 64 KiB."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


MANY_REQUESTS = """
    from wsgi import app
    client = app.test_client()
    print(sum(client.get("/api/nothing").status_code == 404 for _ in range(3000)))
"""


@pytest.mark.processes
def test_j4_requests_are_answered_and_the_process_ends_though_nobody_reads_its_log() -> None:
    with nobody_reads() as (_, writing):
        done = run(MANY_REQUESTS, stderr=writing)

    assert (done.returncode, done.stdout) == (0, b"3000\n")


@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_j4_requests_are_answered_though_the_disk_is_full() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(MANY_REQUESTS, stderr=full)

    assert (done.returncode, done.stdout) == (0, b"3000\n")


@pytest.mark.processes
def test_j4_what_was_dropped_is_counted_once_somebody_reads() -> None:
    code = """
        import logging, wsgi
        for number in range(15_000):
            logging.getLogger("app.many").info("one", extra={"number": number})
        print("logged", flush=True)
        input()
    """
    with nobody_reads() as (reading, writing):
        process = subprocess.Popen(
            program(code),
            cwd=ROOT,
            env=process_environment(ALONE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writing,
        )
        with process, os.fdopen(os.dup(reading), "rb") as pipe:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"logged\n"
                read = []
                while not read or read[-1]["event"] == "one":
                    read.append(json.loads(pipe.readline()))
                process.stdin.write(b"\n")
                process.stdin.close()
                assert process.wait(10) == 0
            finally:
                process.kill()

    *written, last = read
    assert last["event"] == "log_lines_dropped"
    assert len(written) > stderr_handler.MAX_WAITING_LINES
    assert len(written) + last["lines"] == 15_000
    numbers = [line["number"] for line in written]
    assert numbers == sorted(set(numbers))


@pytest.fixture
def handler() -> Iterator[tuple[logging.Logger, int]]:
    """A logger whose lines are written by a handler like the app's, and the end of a pipe to read them at."""
    logger = logging.getLogger("tests.handler")
    with nobody_reads() as (reading, writing):
        own = stderr_handler.StderrHandler(writing)
        own.setFormatter(logs.JsonFormatter())
        logger.addHandler(own)
        logger.propagate = False
        logger.setLevel("INFO")
        yield logger, reading
        logger.removeHandler(own)
        own.flush()


def test_j4_a_torn_line_costs_no_other(
    handler: tuple[logging.Logger, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, reading = handler
    write, room = os.write, [10]  # bytes, on the disk

    def full(fd: int, data: bytes) -> int:
        if room:
            return write(fd, data[: room.pop()])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    logger.info("torn")
    logger.handlers[0].flush()
    monkeypatch.undo()
    logger.info("whole")
    logger.handlers[0].flush()

    torn, *rest = os.read(reading, 65_536).splitlines()
    assert len(torn) == 10
    assert [json.loads(line)["event"] for line in rest] == ["whole", "log_lines_dropped"]
    assert json.loads(rest[-1])["lines"] == 1


def test_j4_a_record_that_cannot_be_shown_is_a_line_and_no_error(
    handler: tuple[logging.Logger, int], capfd: pytest.CaptureFixture[str]
) -> None:
    class Unfit:
        def __str__(self) -> str:
            raise RuntimeError

    logger, reading = handler
    own = logger.handlers[0]
    for unfit in ({"msg": "%d", "args": ("no number",)}, {"msg": "told", "field": Unfit()}):
        own.handle(logging.makeLogRecord(unfit))
    own.flush()

    lines = [json.loads(line) for line in os.read(reading, 65_536).splitlines()]
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("log_format_failed", "TypeError"),
        ("log_format_failed", "RuntimeError"),
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.processes
def test_j4_a_forked_process_writes_its_own_lines_and_only_those() -> None:
    done = run(
        """
        import logging, os, sys, wsgi
        log = logging.getLogger("app.fork")
        log.info("before")
        if os.fork() == 0:
            log.info("child")
            sys.exit()
        os.wait()
        log.info("parent")
        """
    )

    assert done.returncode == 0
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["before", "child", "parent"]


@pytest.mark.processes
def test_j4_the_thread_that_writes_takes_no_signal_from_who_waits_for_it() -> None:
    done = run(
        """
        import logging, os, signal, wsgi
        logging.getLogger("app.early").info("before")
        logging.getLogger().handlers[0].flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as app/spotify/tokens/scheduler.py does
        os.kill(os.getpid(), signal.SIGTERM)
        print(signal.sigwait({signal.SIGTERM}).name)
        """
    )

    assert (done.returncode, done.stdout) == (0, b"SIGTERM\n")


@contextmanager
def unread_server(env: dict[str, str]) -> Iterator[str]:
    """gunicorn, with a log that nobody reads. Yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"PORT": str(port), "WEB_CONCURRENCY": "1", "SPOTIFY_REDIRECT_URI": f"{url}/api/spotify/authorize"}
    with nobody_reads() as (reading, writing), requests.Session() as http:
        http.trust_env = False
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"],
            cwd=ROOT,
            env=process_environment({**env, **own, "LOG_LEVEL": "INFO"}),
            stderr=writing,
            process_group=0,
            preexec_fn=dies_with_parent(),  # noqa: PLW1509 - one call to the kernel, no lock, no memory
        )
        try:
            eventually(lambda: http.get(f"{url}/readyz", timeout=5).status_code == 200, timeout=30)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            secret_scanner.look_at(os.read(reading, 65_536), "the log that nobody read")


@pytest.mark.processes
def test_j4_a_refresh_is_stored_though_nobody_reads_the_log(
    env: dict[str, str], database_url: str, sandbox: SandboxClient
) -> None:
    with unread_server(env) as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"
        begun = http.get(f"{api}/api/spotify/authorize", timeout=10).json()
        back = answer_of(sandbox.consent(begun["authorize_url"]))
        assert http.get(f"{api}/api/spotify/authorize", params=back, timeout=10).status_code == 200
        old = http.get(f"{api}/api/spotify/token", timeout=10).json()["access_token"]

        # 64 KiB of lines, and as much again.
        assert {http.get(f"{api}/api/nothing", timeout=10).status_code for _ in range(600)} == {404}
        expire(database_url)
        new = http.get(f"{api}/api/spotify/token", timeout=10).json()["access_token"]
        assert new != old
        assert http.get(f"{api}/api/spotify/token", timeout=10).json()["access_token"] == new

    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT generation FROM access_tokens")).scalar_one() == 1
    engine.dispose()
