"""DATABASE_URL: SQLite, or one or several MySQL servers in order of preference."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.engine import URL, make_url

from app.settings.urls import is_host

MYSQL = "mysql+mysqldb"
MYSQL_PORT = 3306

# Those of mysqlclient that make sense in a URL. Others would be noticed only by the first connection.
_MYSQL_PARAMETER = (
    r"auth_plugin|charset|client_flag|collation|compress|init_command|local_infile|passw(or)?d|sql_mode|user|"
    r"server_public_key_path|"
    r"ssl_(ca|capath|cert|check_hostname|cipher|key|mode)|unix_socket|use_unicode|"
    r"read_default_(file|group)|(connect|read|write)_timeout"
)
# As in SQLAlchemy, a password may contain a slash.
_PARTS = re.compile(
    r"(?P<scheme>[\w+]+://)(?P<login>[^:/]*(?::[^@]*)?@)?(?P<hosts>[^/?]*)(?P<rest>.*)", re.DOTALL
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^\[\]:@]+))(?::(?P<port>[0-9]{1,5}))?")


class HostListError(ValueError):
    """A list of hosts is malformed. The message does not quote it: a password with an `@` would be in it."""


@dataclass(frozen=True, slots=True)
class Host:
    """A MySQL server's name or IP address, and its port."""

    name: str
    port: int = MYSQL_PORT

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class ParsedDatabaseUrl:
    """A database's URL.

    Attributes:
        url: SQLAlchemy's form. It has the first host only.
        hosts: The servers, the preferred one first. Empty for SQLite and a Unix socket.
    """

    url: URL
    hosts: tuple[Host, ...]

    @property
    def shown(self) -> str:
        """The URL without its password, and without the query, which may contain one too."""
        shown = self.url.set(query={}).render_as_string(hide_password=True)
        if len(self.hosts) < 2:
            return shown
        parts = _split(shown)
        return f"{parts['scheme']}{parts['login'] or ''}{','.join(map(str, self.hosts))}{parts['rest']}"


def parse_database_url(text: str) -> ParsedDatabaseUrl:
    """Parse a URL such as `mysql+mysqldb://user:password@host1:3306,[2001:db8::2]:3307/database`.

    Raises:
        HostListError: A host is malformed or repeated.
        ArgumentError, ValueError: SQLAlchemy does not understand the URL.
    """
    parts = _split(text)
    if parts["scheme"] != f"{MYSQL}://" or not parts["hosts"]:
        return ParsedDatabaseUrl(make_url(text), ())
    entries = parts["hosts"].split(",")
    hosts = tuple(_hosts(entries))
    url = make_url(f"{parts['scheme']}{parts['login'] or ''}{entries[0]}{parts['rest']}")
    if "unix_socket" in url.query:
        if len(entries) > 1:
            raise HostListError("has several hosts and a unix_socket. Use one or the other.")
        return ParsedDatabaseUrl(url, ())
    if len({(host.name.lower(), host.port) for host in hosts}) < len(hosts):
        raise HostListError("has the same host twice.")
    return ParsedDatabaseUrl(url, hosts)


def is_usable(url: URL) -> bool:
    """Return whether a URL names a database, with a driver and parameters that are supported.

    Raises:
        ArgumentError, ValueError: A parameter is not a number.
    """
    url.get_dialect()().create_connect_args(url)  # checks the parameters that are numbers
    if url.drivername == MYSQL and not all(re.fullmatch(_MYSQL_PARAMETER, name) for name in url.query):
        return False
    # A database in memory would be another one for every connection.
    has_name = url.database not in (None, "", ":memory:") and not (
        url.drivername == MYSQL and "/" in str(url.database)
    )
    return has_name and url.drivername in (MYSQL, "sqlite", "sqlite+pysqlite")


def _split(text: str) -> dict[str, str]:
    found = _PARTS.fullmatch(text)
    return found.groupdict() if found else {"scheme": "", "login": "", "hosts": "", "rest": ""}


def _hosts(entries: list[str]) -> Iterator[Host]:
    for number, entry in enumerate(entries, 1):
        found = _HOST.fullmatch(entry)
        port = int(found["port"] or MYSQL_PORT) if found else 0
        if found is None or not 1 <= port <= 65535 or not _is_name(found["ipv6"], found["name"]):
            raise HostListError(
                f"has a malformed host (number {number} of {len(entries)}). Hosts look like "
                "host1:3306,host2:3306, with IPv6 addresses in brackets. Special characters of the password "
                "must be percent-encoded (@ is %40)."
            )
        yield Host(found["ipv6"] or found["name"], port)


def _is_name(ipv6: str | None, name: str | None) -> bool:
    if ipv6 is None:
        return is_host(name)
    try:
        return ipaddress.ip_address(ipv6).version == 6
    except ValueError:
        return False
