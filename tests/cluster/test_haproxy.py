"""deploy/cluster/haproxy.cfg passes on what nginx and gunicorn accept."""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot_run
from tests.helpers.raw_http import RawResponse, exchange, request
from tests.helpers.servers import LONG, ROOT, Unavailable, _accepts, eventually, find_program, free_port

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]

CONFIGURATION = ROOT / "deploy" / "cluster" / "haproxy.cfg"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run HAProxy while no host does. Returns its port."""
    try:
        program = find_program("haproxy", "haproxy")
    except Unavailable as error:
        cannot_run(error)
    port, home = free_port(), tmp_path_factory.mktemp("haproxy")
    text = CONFIGURATION.read_text().replace("127.0.0.1:5000", f"127.0.0.1:{port}")
    text = re.sub(r"10\.77\.0\.[123]:5000", "127.0.0.1:1", text)
    text = re.sub("^    (user|group) haproxy$|^    stats socket .*$", "", text, flags=re.MULTILINE)
    file = Path(home / "haproxy.cfg")
    file.write_text(text)
    with subprocess.Popen([program, "-db", "-f", str(file)], stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _accepts(port))
            yield port
        finally:
            process.kill()


def send(port: int, sent: bytes) -> RawResponse:
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as connection:
        return exchange(connection, sent)


@pytest.mark.parametrize(
    "headers",
    [[f"X-Large-{number}: {'x' * 8000}" for number in range(4)], [f"X-{number}: x" for number in range(200)]],
    ids=["large", "many"],
)
def test_headers_that_nginx_accepts_are_accepted(port: int, headers: list[str]) -> None:
    response = send(port, request("GET", "/api/session", *headers))

    assert response.problem["type"] == "/problems/service-unavailable"  # so a host would have got it


def test_bytes_that_are_not_ascii_are_accepted(port: int) -> None:
    response = send(port, request("GET", "/api/session?q=PLACE").replace(b"PLACE", "\u00e9".encode()))

    assert response.problem["type"] == "/problems/service-unavailable"
