"""Install what the tests need beside Python packages, then become pytest. Run by script/test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from script.bootstrap import (
    BUILD_PACKAGES,
    PIPENV_HOME,
    ROOT,
    BootstrapError,
    installed_categories,
    missing_for_mysqlclient,
    prepare,
    say,
)

# Debian's packages for the programs that tests start: commands that show one to be there, and who needs it.
PROGRAMS = {
    "mariadb-server": (("mariadbd",), "the tests on MariaDB"),
    "redis-server": (("redis-server",), "the tests of the app, nearly all"),
    "nginx": (("nginx",), "the tests of deploy/nginx.conf"),
    "openssl": (("openssl",), "the tests of deploy/nginx.conf"),
    "curl": (("curl",), "the tests of deploy/nginx.conf and of the README"),
    "faketime": (("faketime",), "the tests with a wrong clock"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "the tests in a browser"),
}


def main() -> None:
    """Install, name what will not be run, and run pytest with this command's arguments."""
    missing = missing_packages()
    if missing and (root := become_root()) is not None:
        apt_install(root, missing)
        missing = missing_packages()
    for package in sorted(missing):
        users = (
            PROGRAMS[package][1] if package in PROGRAMS else "the tests on MariaDB, for want of mysqlclient"
        )
        say(f"Not installed: {package}. Not run: {users}.")
    try:
        prepare(dev=True, mysql=missing <= PROGRAMS.keys())
    except BootstrapError as error:
        sys.exit(str(error))
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *_workers(sys.argv[1:]), *sys.argv[1:]])  # noqa: S606


def _workers(arguments: list[str]) -> list[str]:
    """How many processes run the tests, each on servers of its own: one for a part of them."""
    if any(not argument.startswith("-") for argument in arguments):
        return []
    return ["-n", str(os.cpu_count() or 2), "--dist", "worksteal"]


def missing_packages() -> set[str]:
    """The Debian packages that this machine lacks, whatever way their programs would have come here."""
    # Debian keeps servers in a folder that only root has on PATH.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    programs = {
        package
        for package, (commands, _) in PROGRAMS.items()
        if not any(shutil.which(command, path=path) for command in commands)
    }
    if "mysql" in installed_categories():
        return programs
    return programs | {BUILD_PACKAGES[thing][0] for thing in missing_for_mysqlclient(os.environ)}


def become_root() -> list[str] | None:
    """What a command begins with to run as root without a password; None where there is no apt or no way."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    asked = (
        subprocess.run([*sudo, "true"], capture_output=True, check=False) if shutil.which("sudo") else None
    )
    return sudo if asked is not None and asked.returncode == 0 else None


def apt_install(root: list[str], packages: set[str]) -> None:
    """Install Debian packages. A failure is told, not raised: many tests can run without them."""
    say(f"Installing {', '.join(sorted(packages))} (apt-get).")
    log = PIPENV_HOME / "apt.log"
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *sorted(packages)]
    with log.open("w") as output:
        for command in (["apt-get", "update"], ["env", "DEBIAN_FRONTEND=noninteractive", *install]):
            done = subprocess.run(
                [*root, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
            )
    if done.returncode != 0:
        say(f"apt-get failed; its output is in {Path(log).relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
