"""Measures an installed service that systemd has started from its unit files: see under_systemd.sh."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.helpers.load import Call, Connection, Load, summary
from tests.helpers.servers import eventually
from tests.system.deploy.measure import Target, killed, recovered, report, slow

CERTIFICATE = Path("/etc/backline/certificate.pem")
ANYONE = [
    Call("GET", "/api/session", 200),
    Call("POST", "/api/logout", 204),
    Call("GET", "/api/spotify", 200),
]
STALL_SECONDS = 15


def main_pid(unit: str) -> int:
    command = ["systemctl", "show", "--property=MainPID", "--value", unit]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def kill_worker() -> None:
    """Kill gunicorn's first worker with SIGKILL."""
    arbiter = main_pid("backline-web")
    [worker, *_] = Path(f"/proc/{arbiter}/task/{arbiter}/children").read_text(encoding="ascii").split()
    os.kill(int(worker), signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{worker}").exists())


def register() -> str:
    """Return the cookie of a new account."""
    account = {"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}
    connection = Connection(443, ssl.create_default_context(cafile=str(CERTIFICATE)), "127.0.0.1")
    headers = {"X-Requested-With": "test", "Content-Type": "application/json"}
    connection.request("POST", "/api/register", json.dumps(account), headers)
    response: http.client.HTTPResponse = connection.getresponse()
    assert response.status == 201, response.read()
    return str(response.headers["Set-Cookie"]).partition(";")[0]


def restarted() -> None:
    """Reload and restart the service under load."""
    for command in ("reload", "restart"):
        with Load(443, CERTIFICATE, ANYONE) as load:
            load.wait_for(1000)
            for _ in range(4):
                subprocess.run(["systemctl", command, "backline-web"], check=True)
                load.wait_for(2500)
        report(part=command, times=4, **summary(load.ended))


def gunicorn_killed(on: Target) -> None:
    """Kill all of gunicorn with SIGKILL. systemd keeps the listening socket, and starts it again."""
    killed_pid = main_pid("backline-web")
    with on.load([on.call("/api/user")]) as load:
        load.wait_for(200)
        began = time.monotonic()
        subprocess.run(["systemctl", "kill", "--signal=KILL", "backline-web"], check=True)
        eventually(lambda: main_pid("backline-web") not in (0, killed_pid))
        started = time.monotonic()
        eventually(lambda: recovered([each for each in load.ended if each.ended > started]))
    until = recovered([each for each in load.ended if each.ended > started])
    failed = dict(Counter(str(each.status) for each in load.failed))
    report(
        part="gunicorn killed", recovery_s=round(until - began, 2), **summary(load.ended), by_status=failed
    )


def stalled(on: Target) -> None:
    """Pause Redis and MariaDB in turn, and measure the slowest response and the recovery."""
    calls = [on.call(f"/api/{path}") for path in ("session", "user", "user/sessions")]
    for unit in ("redis-server", "mariadb"):
        pid = main_pid(unit)
        os.kill(pid, signal.SIGSTOP)
        with on.load(calls, clients=16) as load:
            time.sleep(STALL_SECONDS)
        os.kill(pid, signal.SIGCONT)
        resumed = time.monotonic()
        with on.load(calls, clients=1) as after:
            eventually(lambda: recovered(after.ended))
        report(
            part="stalled",
            dependency=unit,
            slowest_s=round(max(each.seconds for each in load.ended), 2),
            responses=dict(Counter(f"{each.call.target} {each.status}" for each in load.ended)),
            recovery_s=round(recovered(after.ended) - resumed, 2),
        )


def main() -> int:
    restarted()
    on = Target(443, CERTIFICATE, register(), kill_worker)
    for measure in (killed, gunicorn_killed, stalled, slow):
        measure(on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
