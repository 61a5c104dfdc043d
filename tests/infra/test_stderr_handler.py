"""StderrHandler writes whole lines, and does not block when standard error does."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from app.infra import log_setup, stderr_handler
from script.supervisor import ends_with_parent
from tests.helpers import secret_scanner
from tests.helpers.children import start_child
from tests.helpers.programs import OFFLINE, program, run_python
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import ROOT, eventually, free_port, process_environment
from tests.system.test_secrets_canary import expire


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe that is not read. It is full after 64 KiB."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


MANY_REQUESTS = """
    from wsgi import app
    client = app.test_client()
    print(sum(client.get("/api/nothing").status_code == 404 for _ in range(600)))
"""


@pytest.mark.requirement("J4")
@pytest.mark.processes
def test_unread_log_blocks_neither_requests_nor_shutdown() -> None:
    with unread_pipe() as (_, writing):
        done = run_python(MANY_REQUESTS, stderr=writing)

    assert (done.returncode, done.stdout) == (0, b"600\n")


@pytest.mark.requirement("J4")
@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk_does_not_block_requests() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_python(MANY_REQUESTS, stderr=full)

    assert (done.returncode, done.stdout) == (0, b"600\n")


@pytest.mark.requirement("J4")
@pytest.mark.processes
def test_dropped_lines_are_counted_once_the_log_is_read() -> None:
    code = """
        import logging, wsgi
        for number in range(15_000):
            logging.getLogger("app.many").info("one", extra={"number": number})
        print("logged", flush=True)
        input()
    """
    with unread_pipe() as (reading, writing):
        process = start_child(
            program(code),
            cwd=ROOT,
            env=process_environment(OFFLINE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writing,
        )
        with process, os.fdopen(os.dup(reading), "rb") as pipe:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"logged\n"
                read: list[dict[str, Any]] = []
                while not read or read[-1]["event"] == "one":
                    read.append(json.loads(pipe.readline()))
                process.stdin.write(b"\n")
                process.stdin.close()
                assert process.wait(60) == 0
            finally:
                process.kill()

    *written, last = read
    assert last["event"] == "log_lines_dropped"
    assert len(written) > stderr_handler.MAX_QUEUED_LINES
    assert len(written) + last["lines"] == 15_000
    numbers = [line["number"] for line in written]
    assert numbers == sorted(set(numbers))


@pytest.fixture
def handler() -> Iterator[tuple[logging.Logger, int]]:
    """A logger with a handler like the app's, and the end of a pipe where its lines can be read."""
    logger = logging.getLogger("tests.handler")
    with unread_pipe() as (reading, writing):
        own = stderr_handler.StderrHandler(writing)
        own.setFormatter(log_setup.JsonFormatter())
        logger.addHandler(own)
        logger.propagate = False
        logger.setLevel("INFO")
        yield logger, reading
        logger.removeHandler(own)
        own.flush()


@pytest.mark.requirement("J4")
def test_partial_line_does_not_damage_the_next_one(
    handler: tuple[logging.Logger, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, reading = handler
    write, room = os.write, [10]  # bytes left on the disk

    def full(fd: int, data: bytes) -> int:
        if room:
            return write(fd, data[: room.pop()])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    logger.info("partial")
    logger.handlers[0].flush()
    monkeypatch.undo()
    logger.info("whole")
    logger.handlers[0].flush()

    partial, *rest = os.read(reading, 65_536).splitlines()
    assert len(partial) == 10
    assert [json.loads(line)["event"] for line in rest] == ["whole", "log_lines_dropped"]
    assert json.loads(rest[-1])["lines"] == 1


@pytest.mark.requirement("J4")
def test_lines_that_come_quickly_are_written_together_and_lost_ones_counted(
    handler: tuple[logging.Logger, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, reading = handler
    write, writes, room = os.write, [0], [1000]  # bytes left on the disk

    def nearly_full(fd: int, data: bytes) -> int:
        writes[0] += 1
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", nearly_full)
    for number in range(50):
        logger.info("one", extra={"number": number})
    logger.handlers[0].flush()
    monkeypatch.undo()
    logger.info("last")
    logger.handlers[0].flush()

    *whole, partial, last, lost = os.read(reading, 65_536).splitlines()
    assert [json.loads(line)["number"] for line in whole] == [*range(len(whole))]
    assert not partial.endswith(b"}")
    assert json.loads(last)["event"] == "last"
    assert json.loads(lost)["lines"] == 50 - len(whole)
    assert writes[0] <= 10


@pytest.mark.requirement("J4")
def test_record_that_cannot_be_formatted_is_reported(
    handler: tuple[logging.Logger, int], capfd: pytest.CaptureFixture[str]
) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    logger, reading = handler
    own = logger.handlers[0]
    for fields in ({"msg": "%d", "args": ("no number",)}, {"msg": "event", "field": Unprintable()}):
        own.handle(logging.makeLogRecord(fields))
    own.flush()

    lines = [json.loads(line) for line in os.read(reading, 65_536).splitlines()]
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("log_format_failed", "TypeError"),
        ("log_format_failed", "RuntimeError"),
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.requirement("J4")
@pytest.mark.processes
def test_forked_process_writes_only_its_own_lines() -> None:
    done = run_python(
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


@pytest.mark.requirement("J4")
@pytest.mark.processes
def test_writer_thread_does_not_take_signals() -> None:
    done = run_python(
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
    """Run gunicorn with a log that is not read, and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"PORT": str(port), "WEB_CONCURRENCY": "1", "SPOTIFY_REDIRECT_URI": f"{url}/api/spotify/authorize"}
    with unread_pipe() as (reading, writing), requests.Session() as http:
        http.trust_env = False
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"],
            cwd=ROOT,
            env=process_environment({**env, **own, "LOG_LEVEL": "INFO"}),
            stderr=writing,
            process_group=0,
            preexec_fn=ends_with_parent(),  # noqa: PLW1509 - one call to the kernel, no lock, no memory
        )
        try:
            eventually(lambda: http.get(f"{url}/readyz", timeout=30).status_code == 200, timeout=90)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            secret_scanner.record(os.read(reading, 65_536), "the unread log")


@pytest.mark.requirement("J4")
@pytest.mark.processes
@pytest.mark.sqlite_only
def test_unread_log_does_not_lose_a_refreshed_token(
    env: dict[str, str], database_url: str, sandbox: SandboxClient
) -> None:
    with unread_server(env) as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"
        started = http.get(f"{api}/api/spotify/authorize", timeout=60).json()
        callback = callback_query(sandbox.consent(started["authorize_url"]))
        assert http.get(f"{api}/api/spotify/authorize", params=callback, timeout=60).status_code == 200
        old = http.get(f"{api}/api/spotify/token", timeout=60).json()["access_token"]

        # These log 128 KiB, twice as much as the pipe holds.
        assert {http.get(f"{api}/api/nothing", timeout=60).status_code for _ in range(600)} == {404}
        expire(database_url)
        new = http.get(f"{api}/api/spotify/token", timeout=60).json()["access_token"]
        assert new != old
        assert http.get(f"{api}/api/spotify/token", timeout=60).json()["access_token"] == new

    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT generation FROM access_tokens")).scalar_one() == 1
    engine.dispose()
