"""The machine in front of the hosts: nginx and HAProxy, as in deploy/. And the sandbox Spotify."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.cluster.hosts import CLIENT_ID, REDIRECT_URI, SPOTIFY_PORT, settings
from tests.cluster.namespaces import HOME, SPOTIFY
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import (
    ROOT,
    Nginx,
    _accepts,
    _nginx_conf,
    eventually,
    find_program,
    make_certificate,
)

HTTPS_PORT = 8443
HAPROXY_PORT = 5000
ADMIN_SOCKET = Path("/run/haproxy/admin.sock")


class Balancer:
    """nginx, which serves https for `Nginx.HOST`, in front of HAProxy.

    Attributes:
        certificate: nginx's own certificate.
    """

    def __init__(self) -> None:
        home = HOME / "balancer"
        home.mkdir()
        self.certificate = home / "certificate.pem"
        make_certificate(find_program("openssl", "openssl"), home, f"DNS:{Nginx.HOST}")
        (home / "nginx.conf").write_text(_nginx_conf(home, HTTPS_PORT, HAPROXY_PORT, {}))
        ADMIN_SOCKET.parent.mkdir()
        haproxy = find_program("haproxy", "haproxy")
        nginx = find_program("nginx", "nginx")
        _start([haproxy, "-db", "-f", str(ROOT / "deploy/cluster/haproxy.cfg")], home / "haproxy.log")
        _start(
            [nginx, "-p", str(home), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"], home / "log"
        )
        eventually(lambda: _accepts(HTTPS_PORT))
        eventually(lambda: _accepts(HAPROXY_PORT))


def tell_haproxy(command: str) -> None:
    """Do as `echo COMMAND | socat stdio /run/haproxy/admin.sock`."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(ADMIN_SOCKET))
        admin.sendall(f"{command}\n".encode())
        response = admin.recv(1000).decode().strip()
    assert not response, response


def start_sandbox() -> SandboxClient:
    """Start the sandbox Spotify at an address that the hosts reach through the network."""
    command = [sys.executable, "-m", "sandbox", "--host", SPOTIFY, "--port", str(SPOTIFY_PORT)]
    command += ["--client-id", CLIENT_ID, "--client-secret", settings()["SPOTIFY_CLIENT_SECRET"]]
    _start([*command, "--redirect-uri", REDIRECT_URI], HOME / "sandbox.log")
    sandbox = SandboxClient(f"http://{SPOTIFY}:{SPOTIFY_PORT}")
    eventually(sandbox.people)
    return sandbox


def _start(command: list[str], log: Path) -> None:
    with log.open("wb") as output:
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
