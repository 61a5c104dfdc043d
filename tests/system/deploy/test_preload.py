"""gunicorn's workers share the memory of libraries, and nothing else."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from config import ROOT
from tests.helpers.servers import LONG, Server, eventually, process_environment, running_server

pytestmark = pytest.mark.processes

NOWHERE = "mysql+mysqldb://127.0.0.1:1/backline"
PRODUCT = ("app", "deploy", "migrations", "config.py", "wsgi.py")

# What `deploy/gunicorn.conf.py` does, and then a worker.
START = """
import json, sys, threading
from pathlib import Path
import config
from deploy import metrics, preload, worker
preload.import_libraries()
inherited = set(sys.modules)
threads = threading.active_count()
sockets = [one for one in Path("/proc/self/fd").iterdir() if one.is_socket()]
import wsgi
print(json.dumps([sorted(inherited), sorted(sys.modules), threads, len(sockets)]))
"""
# Two processes of the same parent print numbers from everything that generates them.
RANDOM = """
import os, random, secrets, uuid
from deploy import preload
preload.import_libraries()
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
random.random(), secrets.token_hex(), uuid.uuid4(), AESGCM.generate_key(128)
for _ in range(2):
    if os.fork() == 0:
        print(random.random(), secrets.token_hex(), uuid.uuid4(), AESGCM.generate_key(128).hex(), flush=True)
        os._exit(0)
    os.wait()
"""

# A process with a handler, as gunicorn's arbiter, forks a worker, and stops it before it handles signals.
STOPPED_EARLY = """
import os, signal
from deploy import worker
signal.signal(signal.SIGTERM, lambda *_: None)
is_sent, send = os.pipe()
worker.hold_stop_signals()
if (pid := os.fork()) == 0:
    os.read(is_sent, 1)
    made = worker.Worker.__new__(worker.Worker)
    made.PIPE = os.pipe()
    os.set_blocking(made.PIPE[1], False)
    made.handle_exit = lambda *_: os._exit(0)
    made.init_signals()
    os._exit(1)
os.kill(pid, signal.SIGTERM)
os.write(send, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def run(script: str, env: dict[str, str]) -> str:
    environment = process_environment(env)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.requirement("M6")
def test_arbiter_imports_every_library_and_nothing_else(behind_nginx: dict[str, str]) -> None:
    """If this fails, add to LIBRARIES what is missing. PyJWT is loaded only where it is configured."""
    env = {**behind_nginx, "DATABASE_URL": NOWHERE, "JWT_SIGNING_KEYS": "", "JWT_AUDIENCES": ""}
    inherited, loaded, threads, sockets = json.loads(run(START, env))

    ours = {name for name in loaded if name.split(".")[0] in ("app", "wsgi")}
    assert set(loaded) - ours - set(inherited) == set()
    assert {name for name in ours & set(inherited) if not name.startswith("app.settings")} == {"app"}
    assert (threads, sockets) == (1, 0)


def test_workers_generate_different_random_numbers(behind_nginx: dict[str, str]) -> None:
    one, other = run(RANDOM, behind_nginx).splitlines()
    assert set(one.split()).isdisjoint(other.split())


def test_signal_that_stops_a_worker_before_it_is_ready_is_not_lost(behind_nginx: dict[str, str]) -> None:
    assert run(STOPPED_EARLY, behind_nginx) == "0 set()\n"


def sockets_of(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.requirement("M6")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_workers_share_no_connection(server: Callable[..., AbstractContextManager[Server]]) -> None:
    with server(workers=2) as api, ThreadPoolExecutor(16) as pool:
        listening = sockets_of(api.processes[0])

        def connected() -> list[set[str]]:
            """Return the sockets of each worker, while each has some to MariaDB and to Redis."""
            list(pool.map(lambda _: requests.get(f"{api.url}/readyz", timeout=LONG), range(32)))
            found = [sockets_of(pid) for pid in api.workers]
            return found if all(len(sockets - listening) >= 2 for sockets in found) else []

        one, other = eventually(connected)
    assert len(listening) == 1
    assert one & other == listening


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the product."""
    for name in PRODUCT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def allows(api: Server, origin: str) -> bool:
    """Return whether pages of this origin may read responses."""
    response = requests.get(f"{api.url}/api/session", headers={"Origin": origin}, timeout=LONG)
    return response.headers.get("Access-Control-Allow-Origin") == origin


@pytest.fixture
def reloaded(behind_nginx: dict[str, str], copy: Path) -> Iterator[Server]:
    """A server that has received a HUP after its code and settings were changed."""
    dotenv, code = copy / ".env", copy / "app" / "web" / "health.py"
    dotenv.write_text("CORS_ORIGINS=https://old.example\n")
    dotenv.chmod(0o600)
    settings = {**behind_nginx, "FLASK_SKIP_DOTENV": "", "TRUSTED_PROXIES": "0"}
    del settings["CORS_ORIGINS"]
    with running_server(settings, workers=1, root=copy) as api:
        assert requests.get(f"{api.url}/livez", timeout=LONG).text == "alive\n"
        first = api.workers
        dotenv.write_text("CORS_ORIGINS=nowhere\n")
        api.signal(signal.SIGHUP)
        eventually(lambda: '"reload_refused"' in api.log and "CORS_ORIGINS has 'nowhere'" in api.log)
        assert api.workers == first
        api.kill_worker()  # the one that replaces it has the old settings too
        eventually(lambda: len(api.workers) == 1 and api.workers != first)
        assert allows(api, "https://old.example")
        first = api.workers
        dotenv.write_text("CORS_ORIGINS=https://new.example\n")
        text = code.read_text()
        assert "alive" in text
        code.write_text(text.replace("alive", "renewed"))
        api.signal(signal.SIGHUP)
        eventually(lambda: len(api.workers) == 1 and api.workers != first)
        yield api


def test_hup_loads_new_code_and_settings(reloaded: Server) -> None:
    def get(path: str) -> Any:
        with suppress(requests.ConnectionError):  # the new worker is not ready yet
            return requests.get(reloaded.url + path, headers={"Origin": "https://new.example"}, timeout=LONG)

    assert eventually(lambda: get("/livez")).text == "renewed\n"
    assert get("/api/session").headers["Access-Control-Allow-Origin"] == "https://new.example"
