"""Installs the packages of Pipfile.lock into .venv. Run by script/bootstrap.

Nothing is installed yet, so only the standard library can be imported here.

    .pipenv/venv    pipenv, separate from the app's packages
    .pipenv/audit   the programs of script/audit
    .pipenv/scan-*  the scanners of script/scan that are in Python
    .pipenv/log     the output of pipenv and pip
    .pipenv/lock    held while a bootstrap is running
    .venv/.stamp    what .venv was made from; missing if its installation did not finish
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "Pipfile.lock"
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
PIPENV_HOME = ROOT / ".pipenv"
PIPENV_VENV, LOG = PIPENV_HOME / "venv", PIPENV_HOME / "log"

# The categories in Pipfile that .venv can have, and their names in Pipfile.lock.
SECTIONS = {"packages": "default", "embedded": "embedded", "dev-packages": "develop"}
SECTIONS |= {"mysql": "mysql", "mongodb": "mongodb"}

# Patterns in pip's output, and what they mean.
CAUSES = {
    "DO NOT MATCH THE HASHES": """\
A Python package is not the file that was locked, so it was not installed. If you use a mirror
(PIP_INDEX_URL), try without it. Do not lock the new hash before you know why it differs.""",
    "NewConnection|ConnectTimeout|ReadTimeout|ProxyError|NameResolution|SSLError|Temporary failure in name"
    "|ame or service not known|Network is unreachable|Connection re|No matching distribution": """\
The Python packages could not be downloaded: the package index cannot be reached. Check the network
(and HTTPS_PROXY or PIP_INDEX_URL, if you need them), then run the same command again.""",
}


class BootstrapError(Exception):
    """The checkout cannot be prepared. The message says what to do."""


def main() -> None:
    """Parse the command line and prepare the checkout, or say why not and exit 1."""
    parser = argparse.ArgumentParser(prog="script/bootstrap")
    for name in ("--dev", "--mysql", "--mongodb"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        prepare(**{**vars(options), "mysql": options.mysql or database_is_mysql(os.environ)})
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while Python exits
    except BootstrapError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)


def prepare(*, dev: bool, mysql: bool, mongodb: bool) -> None:
    """Update .venv to match Pipfile.lock. Returns immediately if it already does."""
    chosen = {"dev-packages": dev, "mysql": mysql, "mongodb": mongodb}
    wanted = {"packages", "embedded", *(category for category, is_chosen in chosen.items() if is_chosen)}
    if wanted <= installed_categories():
        return
    with exclusive():
        installed = installed_categories()  # another bootstrap may have changed it
        if not wanted <= installed:
            if "mysql" in wanted - installed:
                require_compiler()
            install(wanted | installed)


def database_is_mysql(environ: Mapping[str, str]) -> bool:
    """Return whether DATABASE_URL, in the environment or in .env, names MySQL."""
    if "DATABASE_URL" in environ:
        return environ["DATABASE_URL"].startswith("mysql")
    try:
        dotenv = (ROOT / ".env").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False  # the app will report it
    return re.search(r"""^\s*(export\s+)?DATABASE_URL\s*=\s*["']?mysql""", dotenv, re.MULTILINE) is not None


def installed_categories() -> set[str]:
    """Return the categories of Pipfile.lock that .venv has, up to date."""
    stamp = read_stamp()
    return set(stamp["categories"]) if stamp and stamp["made_from"] == made_from() else set()


def read_stamp() -> dict[str, list[str]]:
    """Return what .venv was made from; empty if it is missing or unfinished."""
    try:
        stamp: dict[str, list[str]] = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if stamp.keys() == {"made_from", "categories"} else {}


def made_from() -> list[str]:
    """Return what .venv depends on: the locked packages and its Python."""
    return [hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest(), venv_version()]


def venv_version() -> str:
    """Return the version of .venv's Python; empty if it does not run."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return sys.version.split()[0]
    command = [str(VENV / "bin/python"), "-c", "import sys; print(sys.version.split()[0], sys.prefix)"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    version, _, prefix = output.strip().partition(" ")
    return version if Path(prefix).resolve() == VENV.resolve() else ""


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait for any other bootstrap of this checkout. Raise BootstrapError if a file cannot be written."""
    try:
        PIPENV_HOME.mkdir(exist_ok=True)
        with (PIPENV_HOME / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another bootstrap is running here; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        message = f"This checkout cannot be prepared. {error.filename or ROOT}: {error.strerror or error}."
        if isinstance(error, PermissionError):
            chown = f'sudo chown -R "$(id -un)" {shlex.quote(str(ROOT))}'
            message += f"\nIt belongs to another user. Run this as that user, or make it yours:\n  {chown}"
        raise BootstrapError(message) from error


def install(categories: set[str]) -> None:
    """Install these categories of Pipfile.lock into .venv."""
    install_pipenv()
    stamp = read_stamp()
    if (VENV.is_symlink() or VENV.exists()) and (not stamp or stamp["made_from"][1] != venv_version()):
        say("Recreating .venv: its installation did not finish, or its Python does not run.")
        VENV.unlink() if VENV.is_symlink() else shutil.rmtree(VENV)
    names = [name for name in SECTIONS if name in categories]
    total = len({package for name in names for package in locked_packages(SECTIONS[name])})
    say(f"Installing {total} packages into .venv ({', '.join(names)}).")
    STAMP.unlink(missing_ok=True)  # pip cannot repair packages that it was copying when it was killed
    run_pipenv("sync", "--verbose", "--python", base_python(), "--categories", " ".join(names), total=total)
    STAMP.write_text(json.dumps({"made_from": made_from(), "categories": names}), encoding="utf-8")


def install_pipenv() -> None:
    """Install the locked version of pipenv, with all hashes checked."""
    install_apart("pipenv", PIPENV_VENV)


def install_apart(section: str, venv: Path, lock_file: Path = LOCK_FILE, *, build: bool = False) -> None:
    """Install a section of a lock file into an environment of its own, with all hashes checked.

    With `build`, the section's own setuptools builds the packages that have no wheel.
    """
    python, stamp = venv / "bin/python", venv / ".stamp"
    locked = locked_requirements(section, lock_file=lock_file)
    # The symlink dangles if the Python that it was made from is gone.
    if python.exists() and stamp.is_file() and stamp.read_text() == locked:
        return
    say(f"Installing {section} into {venv.relative_to(ROOT)}.")
    run([base_python(), "-m", "venv", "--clear", str(venv)])
    # Wheels only: a source package would download its build tools, without hashes.
    wheels, requirements = ["--only-binary", ":all:"], PIPENV_HOME / "requirements.txt"
    pip = [str(python), "-m", "pip", "install", "--require-hashes", "--requirement", str(requirements)]
    if build:
        requirements.write_text("".join(re.findall("^setuptools==.*", locked, re.MULTILINE)))
        run([*pip, *wheels])
        wheels = ["--no-build-isolation"]
    requirements.write_text(locked)
    run([*pip, *wheels])
    requirements.rename(stamp)


def locked_requirements(*sections: str, lock_file: Path = LOCK_FILE) -> str:
    """Return the packages of sections of a lock file in the format of a requirements file."""
    found = [each for section in sections for each in locked_packages(section, lock_file).items()]
    return "".join(
        f"{name}{package['version']} {' '.join(f'--hash={digest}' for digest in package['hashes'])}\n"
        for name, package in dict(found).items()
    )


def locked_packages(section: str, lock_file: Path = LOCK_FILE) -> dict[str, Any]:
    """Return the packages of a section of a lock file."""
    return dict(json.loads(lock_file.read_text(encoding="utf-8")).get(section, {}))


def base_python() -> str:
    """Return the interpreter that this one, perhaps .venv's, was made from."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def require_compiler() -> None:
    """Raise BootstrapError if mysqlclient cannot be compiled here: pip takes a minute to find out."""
    pkg_config = shutil.which("pkg-config") or shutil.which("pkgconf")
    has_flags = "MYSQLCLIENT_CFLAGS" in os.environ  # instead of pkg-config and one of its packages:
    ask = [[pkg_config or "false", "--exists", name] for name in ("mysqlclient", "mariadb", "libmariadb")]
    found = {
        "gcc": shutil.which("cc") or shutil.which("gcc") or "CC" in os.environ,
        "pkg-config": pkg_config or has_flags,
        "libmariadb-dev": has_flags
        or 0 in [subprocess.run(command, check=False).returncode for command in ask],
        "python3-dev": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    missing = " ".join(package for package, is_there in found.items() if not is_there)
    if missing:
        raise BootstrapError(f"""\
mysqlclient is compiled on this machine, and something is missing: {missing}.
Install it, then run the same command again:
  Debian, Ubuntu  sudo apt-get install {missing}
  Fedora          sudo dnf install gcc pkgconf-pkg-config mariadb-connector-c-devel python3-devel
  macOS           xcode-select --install; brew install pkgconf mariadb-connector-c
Or use MySQL later: without DATABASE_URL, data goes into an SQLite file.""")


def run_pipenv(*arguments: str, total: int = 0, pipfile: Path = ROOT / "Pipfile") -> None:
    """Run pipenv for this project, whatever environment is active. Its own .env support is off."""
    flags = ("VENV_IN_PROJECT", "IGNORE_VIRTUALENVS", "DONT_LOAD_ENV", "NOSPIN", "YES")
    environ = {
        **os.environ,
        **{f"PIPENV_{flag}": "1" for flag in flags},
        "PIPENV_PIPFILE": str(pipfile),
    }
    environ = {name: value for name, value in environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    run([str(PIPENV_VENV / "bin/python"), "-m", "pipenv", *arguments], environ, total=total)


def run(command: list[str], environ: Mapping[str, str] = os.environ, *, total: int = 0) -> None:
    """Run a command with its output in the log, counting the packages that pip collects."""
    environ = {**environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    done = 0
    with (
        LOG.open("w", encoding="utf-8") as log,
        # In a new process group, so that everything it started ends with it.
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                log.write(line)
                if line.startswith("Collecting ") and done < total:
                    done += 1
                    if sys.stdout.isatty() or done % 20 == 0:
                        print(f"    {done} of {total}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
            child.wait()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode != 0:
        raise BootstrapError(explain_failure(LOG.read_text(encoding="utf-8")))


def explain_failure(log: str) -> str:
    """Say why pip or pipenv failed, and what to do."""
    tail = "\n".join(f"    {line}" for line in log.rstrip().splitlines()[-15:])
    cause = next((text for pattern, text in CAUSES.items() if re.search(pattern, log)), None)
    return f"{cause or f'pip or pipenv failed:{chr(10)}{tail}'}\nThe full log is in {LOG.relative_to(ROOT)}."


def say(message: str) -> None:
    """Announce a step that takes a while."""
    print(f"==> {message}", flush=True)


if __name__ == "__main__":
    main()
