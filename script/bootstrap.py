"""Put the packages of Pipfile.lock into .venv. script/bootstrap runs this with a Python that will do.

Only the standard library may be imported here: nothing is installed yet.

    .pipenv/venv        pipenv, apart from the app's packages
    .pipenv/log         what pipenv and pip said last
    .pipenv/lock        held while a bootstrap is at work
    .pipenv/unfinished  there while packages are being copied into .venv, and after that was interrupted
    .venv/.stamp        what .venv was made from
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "Pipfile.lock"
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
PIPENV_HOME = ROOT / ".pipenv"
UNFINISHED = PIPENV_HOME / "unfinished"
PIPENV_VENV = PIPENV_HOME / "venv"
PIPENV_STAMP = PIPENV_VENV / ".stamp"
LOG = PIPENV_HOME / "log"

PIPENV_VERSION = "2026.10.3"
# pipenv and what it needs, each with its version and hash. script/lock writes it.
PIPENV_REQUIREMENTS = ROOT / "script/pipenv.txt"

# Pipfile's names for the categories, and Pipfile.lock's.
SECTIONS = {"packages": "default", "embedded": "embedded", "dev-packages": "develop", "mysql": "mysql"}

NETWORK_TROUBLE = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|NameResolutionError|SSLError"
    r"|Temporary failure in name|Name or service not known|nodename nor servname|Network is unreachable"
    r"|Connection (refused|reset)|No matching distribution found"
)

WRONG_HASH = re.compile(r"DO NOT MATCH THE HASHES")

# What each thing mysqlclient is compiled with is called by the package managers people have here.
BUILD_PACKAGES = {
    "a C compiler": ("gcc", "gcc", None),
    "pkg-config": ("pkg-config", "pkgconf-pkg-config", "pkgconf"),
    "the MariaDB client library with its headers (libmariadb-dev)": (
        "libmariadb-dev",
        "mariadb-connector-c-devel",
        "mariadb-connector-c",
    ),
    "the Python headers (python3-dev)": ("python3-dev", "python3-devel", None),
}


class BootstrapError(Exception):
    """The checkout cannot be prepared. The message says what to do about it."""


def main() -> None:
    """Prepare the checkout as asked on the command line, or say why not and exit 1."""
    parser = argparse.ArgumentParser(prog="script/bootstrap")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--mysql", action="store_true")
    asked = parser.parse_args()
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
                signal.signal(number, _interrupt)
        prepare(dev=asked.dev, mysql=asked.mysql or database_is_mysql(os.environ))
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python has no words of its own for it while it ends
    except BootstrapError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def prepare(*, dev: bool, mysql: bool) -> None:
    """Bring .venv up to date with Pipfile.lock. Returns at once when it is.

    Raises:
        BootstrapError: something is missing on this machine, or the packages cannot be had.
    """
    wanted = {"packages", "embedded"} | ({"dev-packages"} if dev else set()) | ({"mysql"} if mysql else set())
    if wanted <= installed_categories():
        return
    with at_work():
        # Another bootstrap may have made .venv since this one began, on the only Python there was then.
        continue_on_venv()
        have = installed_categories()
        if wanted <= have:
            return
        if "mysql" in wanted - have:
            check_compiler()
        # What is there stays there: a run without --dev must not make the next one with it start over.
        install(wanted | recorded_categories())


def database_is_mysql(environ: Mapping[str, str]) -> bool:
    """Whether DATABASE_URL, in the environment or else in .env, asks for MySQL."""
    if "DATABASE_URL" in environ:
        return environ["DATABASE_URL"].startswith("mysql")
    try:
        dotenv = (ROOT / ".env").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False  # the app says what is wrong with it, as soon as it can run
    return re.search(r"""^\s*(export\s+)?DATABASE_URL\s*=\s*["']?mysql""", dotenv, re.MULTILINE) is not None


def installed_categories() -> set[str]:
    """The categories that .venv holds as Pipfile.lock now has them; none when .venv is not to be trusted."""
    # script/bootstrap prefers .venv's own Python, so running on another one means that .venv's does not run.
    if Path(sys.prefix).resolve() != VENV.resolve() or read_stamp().get("made_from") != made_from():
        return set()
    return recorded_categories()


def recorded_categories() -> set[str]:
    """The categories that were asked of .venv so far, up to date or not."""
    return set(SECTIONS) & set(read_stamp().get("categories", []))


def read_stamp() -> dict[str, list[str]]:
    """What .venv was made from; empty when it is missing or was not finished."""
    try:
        stamp: dict[str, list[str]] = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp


def made_from() -> list[str]:
    """What would make another .venv: the locked packages, the Python, pipenv."""
    return [hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest(), sys.version.split()[0], PIPENV_VERSION]


def continue_on_venv() -> None:
    """Start this command again on .venv's Python, if it runs on another one although .venv is finished.

    The lock is let go and taken again, if it is still needed. There is no third start: the Python that is
    started has said beforehand that it is .venv's.
    """
    if Path(sys.prefix).resolve() == VENV.resolve() or not STAMP.is_file() or UNFINISHED.exists():
        return
    python = str(VENV / "bin/python")
    question = "import sys; print(sys.prefix); sys.exit(sys.version_info < (3, 11))"
    try:
        asked = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    except OSError:
        return
    if asked.returncode == 0 and Path(asked.stdout.strip()).resolve() == VENV.resolve():
        sys.stdout.flush()
        os.execv(python, [python, *sys.orig_argv[1:]])  # noqa: S606


@contextmanager
def at_work() -> Iterator[None]:
    """Keep a second bootstrap of this checkout waiting. The lock goes with the process, however it ends.

    Raises:
        BootstrapError: a file of the checkout cannot be written, here or in what is done under the lock.
    """
    try:
        PIPENV_HOME.mkdir(exist_ok=True)
        with (PIPENV_HOME / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another bootstrap is at work here; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BootstrapError(explain_os_error(error)) from error


def install(categories: set[str]) -> None:
    """Make .venv hold these categories of Pipfile.lock."""
    install_pipenv()
    discard_broken_venv()
    names = [name for name in SECTIONS if name in categories]
    total = count_packages(names)
    say(f"Installing {total} packages into .venv ({', '.join(names)}).")
    # pip cannot tell a package that it was copying when it was killed from a whole one, so .venv is made
    # anew after an interruption. pip's cache makes that quick.
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    run_pipenv(
        "sync", "--verbose", "--python", base_python(), "--categories", " ".join(names), packages=total
    )
    STAMP.write_text(json.dumps({"made_from": made_from(), "categories": names}), encoding="utf-8")
    UNFINISHED.unlink()


def install_pipenv() -> None:
    """Make .pipenv/venv hold the one version of pipenv that the lock file was made for.

    Every file that pip fetches for it is checked against the hash in PIPENV_REQUIREMENTS.

    Raises:
        BootstrapError: this Python cannot make environments, or pip cannot fetch pipenv.
    """
    python = PIPENV_VENV / "bin/python"
    # The link dangles when the Python that it was made from is gone.
    made_from = hashlib.sha256(PIPENV_REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and PIPENV_STAMP.is_file() and PIPENV_STAMP.read_text() == made_from:
        return
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BootstrapError(
            f"Python {version} here came without its venv module. Install it, then run the same command "
            "again:\n"
            f"  Debian, Ubuntu  {sudo()}apt-get install python{version}-venv"
        )
    say(f"Installing pipenv {PIPENV_VERSION} into .pipenv.")
    run([base_python(), "-m", "venv", "--clear", str(PIPENV_VENV)])
    # Wheels only: building from source would fetch what builds it, and of that there is no hash.
    checked = ["--require-hashes", "--only-binary", ":all:", "--requirement", str(PIPENV_REQUIREMENTS)]
    run([str(python), "-m", "pip", "install", *checked])
    PIPENV_STAMP.write_text(made_from)


def discard_broken_venv() -> None:
    """Remove a .venv whose installation was interrupted, or whose Python does not run or is too old."""
    if not VENV.exists() and not VENV.is_symlink():
        return
    if UNFINISHED.exists():
        say("Making .venv anew: its last installation did not finish.")
    elif Path(sys.prefix).resolve() != VENV.resolve():
        say("Making .venv anew: its Python does not run, or is older than 3.11.")
    else:
        return
    if VENV.is_symlink():
        VENV.unlink()
    else:
        shutil.rmtree(VENV)


def base_python() -> str:
    """The interpreter that this one, perhaps .venv's, was made from."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def count_packages(categories: Iterable[str]) -> int:
    """How many packages Pipfile.lock has in these categories."""
    locked = json.loads(LOCK_FILE.read_text(encoding="utf-8"))
    return len({package for name in categories for package in locked.get(SECTIONS[name], {})})


def check_compiler() -> None:
    """See that mysqlclient can be compiled, before pip spends a minute on finding out.

    Raises:
        BootstrapError: with exactly what is missing, and the command that installs it.
    """
    missing = missing_for_mysqlclient(os.environ)
    if missing:
        raise BootstrapError(
            "mysqlclient is compiled on this machine, and this is missing for it:\n"
            + "".join(f"  - {thing}\n" for thing in missing)
            + "Install it, then run the same command again:\n"
            + "".join(f"  {line}\n" for line in install_commands(missing))
            + "Or leave MySQL for later: without DATABASE_URL the data goes into an SQLite file."
        )


def missing_for_mysqlclient(environ: Mapping[str, str]) -> list[str]:
    """Which of BUILD_PACKAGES this machine lacks."""
    pkg_config = shutil.which("pkg-config") or shutil.which("pkgconf")
    # mysqlclient's setup.py asks pkg-config for these names, unless it is told the flags.
    told = {"MYSQLCLIENT_CFLAGS", "MYSQLCLIENT_LDFLAGS"} <= environ.keys()
    names = ("mysqlclient", "mariadb", "libmariadb", "perconaserverclient")
    library = (
        any(subprocess.run([pkg_config, "--exists", name], check=False).returncode == 0 for name in names)
        if pkg_config
        else any(Path(f"/usr/include/{name}/mysql.h").exists() for name in ("mariadb", "mysql"))
    )
    compiler = environ.get("CC", "").split()[:1] or ["cc", "gcc", "clang"]
    headers = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    have = {
        "a C compiler": any(shutil.which(name) for name in compiler),
        "pkg-config": told or pkg_config is not None,
        "the MariaDB client library with its headers (libmariadb-dev)": told or library,
        "the Python headers (python3-dev)": any(Path(folder, "Python.h").exists() for folder in headers),
    }
    return [thing for thing, found in have.items() if not found]


def install_commands(missing: list[str]) -> list[str]:
    """The command for this machine's package manager; every one that is known where there is none."""
    apt, dnf, brew = zip(*(BUILD_PACKAGES[thing] for thing in missing), strict=True)
    commands = {
        "apt-get": f"{sudo()}apt-get install {' '.join(filter(None, apt))}",
        "dnf": f"{sudo()}dnf install {' '.join(filter(None, dnf))}",
        "brew": f"brew install {' '.join(filter(None, brew))}" if any(brew) else "",
    }
    if None in brew:
        commands["brew"] = "; ".join(filter(None, ["xcode-select --install", commands["brew"]]))
    return [command for name, command in commands.items() if shutil.which(name)] or list(commands.values())


def sudo() -> str:
    """What a command for the system's package manager begins with for this user."""
    return "" if os.geteuid() == 0 else "sudo "


def run_pipenv(*arguments: str, packages: int = 0) -> None:
    """Run pipenv on this project only, whatever else the shell is set up for."""
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    environ |= {
        "PIPENV_PIPFILE": str(ROOT / "Pipfile"),
        "PIPENV_VENV_IN_PROJECT": "1",
        "PIPENV_IGNORE_VIRTUALENVS": "1",
        "PIPENV_DONT_LOAD_ENV": "1",  # .env is the app's, not pipenv's
        "PIPENV_NOSPIN": "1",
        "PIPENV_YES": "1",
    }
    run([str(PIPENV_VENV / "bin/python"), "-m", "pipenv", *arguments], environ, packages=packages)


def run(command: list[str], environ: Mapping[str, str] = os.environ, *, packages: int = 0) -> None:
    """Run a command with its output in the log, showing how many of `packages` pip has got to.

    The command gets a process group of its own: whatever it started ends with it.

    Raises:
        BootstrapError: it failed, with the reason as far as the log tells.
    """
    progress = Progress(packages)
    with LOG.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                log.write(line)
                if packages and line.startswith("Collecting "):
                    progress.step()
            status = child.wait()
        finally:
            end_group(child)
    if status != 0:
        raise BootstrapError(explain_failure(LOG.read_text(encoding="utf-8")))


def end_group(child: subprocess.Popen[str]) -> None:
    """End a command that is still running, and whatever it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


class Progress:
    """Says how many packages pip has got to: as it happens on a terminal, every few seconds elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._terminal = sys.stdout.isatty()
        self._said = time.monotonic()

    def step(self) -> None:
        """Count one more package."""
        self._done = min(self._done + 1, self._total)
        text = f"    {self._done} of {self._total}"
        if self._terminal:
            last = self._done == self._total
            print(f"\r{text}{' fetched; unpacking' if last else ''}", end="\n" if last else "", flush=True)
        elif time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            print(text, flush=True)


def explain_failure(log: str) -> str:
    """Why pip or pipenv failed, in words that say what to do."""
    where = f"The whole log is in {LOG.relative_to(ROOT)}."
    if NETWORK_TROUBLE.search(log):
        return (
            "The Python packages could not be fetched: the package index cannot be reached from here.\n"
            "Check the network (and HTTPS_PROXY or PIP_INDEX_URL, where one is needed), then run the same\n"
            f"command again. {where}"
        )
    if WRONG_HASH.search(log):
        return (
            "A Python package is not the file that was locked, so it was not installed. If a mirror is set\n"
            "(PIP_INDEX_URL, pip's configuration), try without it. Do not lock the new hash before you know\n"
            f"why it differs. {where}"
        )
    tail = "\n".join(f"    {line}" for line in log.rstrip().splitlines()[-15:])
    return f"pip or pipenv failed:\n{tail}\n{where}"


def explain_os_error(error: OSError) -> str:
    """Which file is in the way, and what to do when it is another user's."""
    where = os.path.relpath(os.fsdecode(error.filename), ROOT) if error.filename else str(ROOT)
    told = f"This checkout cannot be prepared. {where}: {error.strerror or error}."
    if isinstance(error, PermissionError):
        told += (
            "\nIt belongs to another user, who may have run this command before. Run it as that user, or\n"
            "make the whole checkout your own and run the same command again:\n"
            f'  sudo chown -R "$(id -un)" {shlex.quote(str(ROOT))}'
        )
    return told


def say(message: str) -> None:
    """Tell what long work begins."""
    print(f"==> {message}", flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
