"""What happens to a host. Each is in effect as long as its block, and then the host comes back by itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.cluster.balancer import tell_haproxy
from tests.cluster.hosts import START_SECONDS, Host
from tests.cluster.namespaces import Cut
from tests.cluster.releases import make_release
from tests.helpers.servers import eventually, migrate

FaultOf = Callable[[list[Host], Host], AbstractContextManager[None]]


@contextmanager
def _kill(_hosts: list[Host], host: Host) -> Iterator[None]:
    """All processes are killed at once."""
    host.kill()
    yield
    host.boot()


@contextmanager
def _power(_hosts: list[Host], host: Host) -> Iterator[None]:
    """The host is gone: nothing even refuses a connection."""
    host.cable.cut("both")
    host.kill()
    yield
    host.cable.restore()
    host.boot()


def _cut(what: Cut) -> FaultOf:
    @contextmanager
    def cut(_hosts: list[Host], host: Host) -> Iterator[None]:
        host.cable.cut(what)
        try:
            yield
        finally:
            host.cable.restore()

    return cut


@contextmanager
def _pause(_hosts: list[Host], host: Host) -> Iterator[None]:
    host.pause()
    try:
        yield
    finally:
        host.resume()


@contextmanager
def _fill_disk(_hosts: list[Host], host: Host) -> Iterator[None]:
    ending = threading.Event()
    thread = threading.Thread(target=host.keep_disk_full, args=(ending,))
    thread.start()
    try:
        # Another Redis must take over: this one rejects writes.
        eventually(lambda: not host.has_primary(), START_SECONDS)
        yield
    finally:
        ending.set()
        thread.join()
        host.empty_disk()


@contextmanager
def _roll_out(hosts: list[Host], _host: Host) -> Iterator[None]:
    """A new release with a migration is installed on one host after the other."""
    release = make_release((hosts[0].disk / "current").resolve())
    migrate(hosts[0].environment(for_migrations=True), release)
    for host in hosts:
        server = f"ready/host{host.number}"
        tell_haproxy(f"set server {server} state drain")
        host.install(release)
        eventually(lambda host=host: host.problem() is None, START_SECONDS)  # type: ignore[misc]
        tell_haproxy(f"set server {server} state ready")
    yield


FAULTS: dict[str, FaultOf] = {
    "kill": _kill,
    "power": _power,
    "cut": _cut("both"),
    "cut-in": _cut("in"),
    "cut-out": _cut("out"),
    "pause": _pause,
    "disk": _fill_disk,
    "rollout": _roll_out,
}
