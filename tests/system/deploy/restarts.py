"""Reloads and restarts an installed service under load: see under_systemd.sh."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.load import Call, Load, summary

CALLS = [Call("GET", "/api/session", 200), Call("POST", "/api/logout", 204), Call("GET", "/api/spotify", 200)]


def main() -> int:
    failed = 0
    for name, command, times in (
        ("reload", ["systemctl", "reload", "backline-web"], 4),
        ("restart", ["systemctl", "restart", "backline-web"], 4),
    ):
        with Load(443, Path("/etc/backline/certificate.pem"), CALLS) as load:
            load.wait_for(1000)
            for _ in range(times):
                subprocess.run(command, check=True)
                load.wait_for(2500)
        sys.stdout.write(json.dumps({"command": name, "times": times, **summary(load.ended)}) + "\n")
        sys.stdout.writelines(f"{each}\n" for each in load.failed[:5])
        failed += len(load.failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
