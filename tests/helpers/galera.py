"""A Galera cluster: MariaDB servers that all have the same data, and agree on each commit."""

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.processes import Program
from tests.helpers.servers import Unavailable, _directory, find_program, mariadb_command

PORT = 3306
USER, PASSWORD = "app", "a-password-for-mysql"
_PROVIDERS = [Path("/usr/lib/galera/libgalera_smm.so"), Path("/usr/lib64/galera-4/libgalera_smm.so")]


class GaleraNode(Program):
    """A MariaDB server of a cluster. Each has an address of its own, so that nothing else uses its ports.

    Args:
        address: Where it listens, for clients and for the others.
        cluster: The addresses of all nodes.
        home: A directory with a short path, which every user may enter.
    """

    def __init__(self, address: str, cluster: Sequence[str], home: Path) -> None:
        self.address, self.home = address, home / address
        self.home.mkdir()
        base = [word for word in mariadb_command(self.home) if word not in _NOT_HERE]
        # As root, rsync would give up its rights, and could not write to the directory.
        run_as: list[str] = []
        if os.geteuid() == 0:
            run_as = ["setpriv", "--reuid=mysql", "--regid=mysql", "--clear-groups", "--pdeathsig=KILL"]
            for path in (self.home, *self.home.rglob("*")):
                shutil.chown(path, "mysql", "mysql")
        settings = _settings(address, cluster)
        command = [*run_as, *base, *(f"--{name}={value}" for name, value in settings.items())]
        super().__init__(address, command, home / f"{address}.log")
        self._cluster = settings["wsrep-cluster-address"]
        self._socket = str(self.home / "mariadb.sock")

    def bootstrap(self) -> None:
        """Start it as the first node of a new cluster."""
        command = self._command
        self._command = [*command, "--wsrep-new-cluster"]
        self.start()
        self._command = command

    def is_up(self) -> bool:
        return self.status("wsrep_ready") == "ON"

    def status(self, name: str) -> str:
        """Return a status variable, such as `wsrep_cluster_size`."""
        [[_, value]] = self.execute(f"SHOW STATUS LIKE '{name}'")
        return str(value)

    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """Execute a statement with all privileges, and return its rows.

        SQLAlchemy ends each connection with ROLLBACK, which a node outside its group rejects.
        """
        import MySQLdb

        with closing(MySQLdb.connect(unix_socket=self._socket, user="root", autocommit=True)) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def disconnect(self, *, is_away: bool = True) -> None:
        """Let it leave the group by itself, as after a change that it cannot apply."""
        self.execute(f"SET GLOBAL wsrep_cluster_address = '{'' if is_away else self._cluster}'")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it apply no changes of other nodes. Reading goes on."""
        import MySQLdb

        with closing(MySQLdb.connect(unix_socket=self._socket, user="root")) as connection:
            connection.query("FLUSH TABLES WITH READ LOCK")
            yield

    def isolate(self, *, is_away: bool = True) -> None:
        """Cut it off from the others, but not from clients. It leaves the group, and rejoins afterwards."""
        self.execute(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={int(is_away)}'")


# Options of a single server. A cluster needs the network, and its servers cannot run as root.
_NOT_HERE = ("--skip-networking", "--user=root")


def _settings(address: str, cluster: Sequence[str]) -> dict[str, str]:
    provider = {
        "gmcast.listen_addr": f"tcp://{address}:4567",
        "ist.recv_addr": f"{address}:4568",
        "gcache.size": "16M",
        "evs.keepalive_period": "PT1S",
        "evs.inactive_check_period": "PT1S",
        "evs.suspect_timeout": "PT5S",
        "evs.inactive_timeout": "PT10S",
        "evs.install_timeout": "PT10S",
    }
    return {
        "bind-address": address,
        "port": str(PORT),
        "binlog-format": "ROW",
        "innodb-autoinc-lock-mode": "2",
        "wsrep-on": "ON",
        "wsrep-provider": _find_provider(),
        "wsrep-provider-options": ";".join(f"{name}={value}" for name, value in provider.items()),
        "wsrep-cluster-name": "tests",
        "wsrep-cluster-address": f"gcomm://{','.join(cluster)}",
        "wsrep-node-address": address,
        "wsrep-node-name": address,
        "wsrep-sst-method": "rsync",
        "wsrep-sst-receive-address": f"{address}:4444",
    }


def _find_provider() -> str:
    find_program("rsync", "rsync")
    found = [path for path in _PROVIDERS if path.exists()]
    if not found:
        raise Unavailable("Galera is not installed: apt-get install galera-4")
    return str(found[0])


class GaleraCluster:
    """Nodes of one cluster, with a database `backline` and the user `USER`.

    Attributes:
        nodes: The nodes, in the order of their addresses.
        url: DATABASE_URL for an application that prefers the first node.
    """

    def __init__(self, stack: ExitStack, home: Path) -> None:
        network = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"
        addresses = [f"{network}.{number + 1}" for number in range(3)]
        self.nodes = [GaleraNode(address, addresses, home) for address in addresses]
        self.url = f"mysql+mysqldb://{USER}:{PASSWORD}@{','.join(addresses)}/backline?charset=utf8mb4"
        first, *others = self.nodes
        stack.callback(first.kill)
        first.bootstrap()
        first.execute(f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}'")
        first.execute(f"GRANT ALL ON backline.* TO {USER}")
        for node in others:
            stack.enter_context(node)


@contextmanager
def running_galera() -> Iterator[GaleraCluster]:
    """Run a Galera cluster of three nodes on loopback addresses."""
    with _directory() as home, ExitStack() as stack:
        home.chmod(0o755)
        yield GaleraCluster(stack, home)
