"""A bare Debian server: what debootstrap makes, with systemd, in namespaces of its own."""

import os
import pty
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.package_proxy import running_package_proxy
from tests.helpers.servers import Unavailable, eventually

RELEASE = "bookworm"
REPOSITORY = "/srv/backline.git"
PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "curl": "curl",
    "openssl": "openssl",
}
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
PROXY = "http://127.0.0.1:3142"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HTTPS_PROXY": PROXY,
    "NO_PROXY": "localhost,127.0.0.1,.example.com,.spotify.com",
    "REQUESTS_CA_BUNDLE": "/etc/authorities.pem",
} | {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
# How long debootstrap may take. A busy machine may take many times as long as usual.
BOOT_S = 1200
Completed = subprocess.CompletedProcess[str]


class DebianServer:
    """The server, on which an administrator works who may use sudo."""

    def __init__(self, init: int) -> None:
        self._nsenter = ["nsenter", "--target", str(init)]

    def run(
        self, command: str, *, user: str = "admin", answers: Mapping[str, str] | None = None
    ) -> Completed:
        """Run shell commands. With `answers` to questions, somebody sits at a terminal."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        shell = ["runuser", "-u", user, "--", "bash", "-euo", "pipefail", "-c", command]
        words = [*self._nsenter, *namespaces, "env", "-i", *environment, *shell]
        return run_in_terminal(words, answers) if answers else _run(words)

    def curl(self, *arguments: str) -> str:
        """Request something from the server's own network, with this machine's curl."""
        resolve = ["--resolve", "api.example.com:443:127.0.0.1"]
        command = [*self._nsenter, "--net", "curl", "--silent", "--show-error", "--insecure", *resolve]
        return _run([*command, "--max-time", "120", *arguments]).stdout


def _run(command: Sequence[str]) -> Completed:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def run_in_terminal(command: Sequence[str], answers: Mapping[str, str]) -> Completed:
    """Run a command in a terminal, and type each answer when its question appears."""
    person, terminal = pty.openpty()
    process = subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    os.close(terminal)
    assert process.stdout is not None
    output, waiting = b"", dict(answers)
    with process.stdout:
        while piece := process.stdout.read(65_536):
            output += piece
            for question in [each for each in waiting if each.encode() in output]:
                os.write(person, f"{waiting.pop(question)}\n".encode())
    os.close(person)
    return Completed(command, process.wait(), output.decode())


@contextmanager
def running_debian_server(repository: Path) -> Iterator[DebianServer]:
    """Make and boot a server that has `repository` at REPOSITORY.

    Raises:
        Unavailable: Root, namespaces, a program, or a mirror of Debian are missing.
    """
    require_programs()
    with tempfile.TemporaryDirectory(prefix="debian-") as name:
        folder = Path(name)
        (folder / "sources.list").write_text(mirrors())
        (folder / "apt.conf").write_text(apt_settings())
        script = Path(__file__).with_name("boot_debian.sh")
        # It ends with this process. unshare ignores SIGTERM.
        command = ["setpriv", "--pdeathsig", "KILL", *UNSHARE, str(script), name, str(repository)]
        with running_package_proxy(folder / "proxy"), (folder / "console.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                eventually(lambda: has_ended(process) or find_init(process.pid), timeout=BOOT_S)
                yield booted(process, folder)
            finally:
                process.kill()
                process.wait()


def require_programs() -> None:
    """Raise Unavailable if something is missing on this machine."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0 or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        raise Unavailable("a Debian server needs root, and a kernel with namespaces")


def mirrors() -> str:
    """Return this machine's mirrors for sources.list, that of the release itself first.

    Raises:
        Unavailable: There are none.
    """
    template = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", template, "Created-By: Packages", "Component: main"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    entries = {line.split()[2]: line for line in output.splitlines()}
    if RELEASE not in entries:
        raise Unavailable(f"apt-get on this machine has no mirror of Debian's {RELEASE}")
    releases = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
    return "".join(f"{entries[release]}\n" for release in releases if release in entries)


def apt_settings() -> str:
    """Return this machine's settings for downloads, with the proxy instead of a network."""
    output = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    kept = ("Acquire::Check", "Acquire::Retries", "Acquire::Languages")
    lines = [line for line in output.splitlines() if line.startswith(kept)]
    lines += [f'Acquire::{scheme}::Proxy "{PROXY}";' for scheme in ("http", "https")]
    return "".join(f"{line}\n" for line in lines)


def has_ended(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is not None


def booted(process: "subprocess.Popen[bytes]", folder: Path) -> DebianServer:
    """Return the server when it has started everything.

    Raises:
        Unavailable: A package of Debian could not be downloaded.
        RuntimeError: The server did not boot.
    """
    if (folder / "no-mirror").exists():
        last = (folder / "debootstrap.log").read_text()[-500:]
        raise Unavailable(f"debootstrap failed. Does the mirror of Debian respond? {last}")
    init = find_init(process.pid)
    if init is None:
        raise RuntimeError(f"the server did not boot: {(folder / 'console.log').read_text()[-2000:]}")
    server = DebianServer(init)

    def is_running() -> bool:
        state = server.run("systemctl is-system-running || true", user="root").stdout.strip()
        return state in ("running", "degraded")

    eventually(is_running)
    eventually(lambda: "BEGIN CERTIFICATE" in server.curl("https://127.0.0.1:15000/roots/0"))
    root = server.curl("https://127.0.0.1:15000/roots/0")
    server.run(f"echo '{root}' >>/etc/authorities.pem", user="root")
    return server


def find_init(pid: int) -> int | None:
    """Return the descendant of a process that is systemd."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
            return int(child)
        if (found := find_init(int(child))) is not None:
            return found
    return None
