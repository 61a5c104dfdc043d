"""docs/deploy.md and docs/upgrading.md, command by command, on a bare Debian server.

The tests continue one from the other, as the pages do. Not real are only the DNS entry (/etc/hosts), the
public certificate authority (Pebble, to which certbot's own settings lead), and Spotify: it does not respond.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import start
from tests.helpers.debian_server import REPOSITORY, Completed, DebianServer, running_debian_server
from tests.helpers.releases import Releases
from tests.helpers.servers import ROOT, eventually

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.processes,
    pytest.mark.timeout(2400),  # debootstrap, apt-get, and pip, on a busy machine
]

AS_BACKLINE = "sudo -u backline env APP_ENV=production .venv/bin/flask"
DOCTOR, VERSION = f"{AS_BACKLINE} doctor", f"{AS_BACKLINE} version"
SECRET = "fedcba9876543210fedcba9876543210"
PLACEHOLDERS = {
    "<this repository>": REPOSITORY,
    "<client id>": "0123456789abcdef0123456789abcdef",
    "<new release>": "v0.2.0",
    "<previous release>": "v0.1.0",
}
FIRST = f"""SPOTIFY_CLIENT_SECRET={SECRET} /opt/backline/deploy/install --api api.example.com
    --app https://app.example.com --client-id 0123456789abcdef0123456789abcdef""".replace("\n", " ")
ADA = '{"username": "ada", "email": "ada@example.com", "password": "a long sentence"}'
LOGIN = '{"login": "ada", "password": "a long sentence"}'
# Writes down the arguments of runuser, which all users can read.
OBSERVE = r"""
for program in /usr/sbin/runuser /usr/bin/redis-cli; do
    printf '#!/bin/sh\necho "$@" >>/root/arguments\nexec %s "$@"\n' $program >/usr/local/sbin/${program##*/}
    chmod +x /usr/local/sbin/${program##*/}
done
"""
SETTINGS = "cd /opt/backline && cat .env /etc/backline/* /etc/nginx/nginx.conf /etc/redis/backline.conf"
# A kill -9 before the command that begins with KILL_AT.
KILL = """trap 'case $BASH_COMMAND in "$KILL_AT"*) kill -9 $$ $BASHPID ;; esac' DEBUG; set -T"""
KILLED_BEFORE = [
    'run_sql "GRANT SELECT, INSERT, UPDATE, DELETE ON',
    "mv -f",
    "ensure_running redis-server restart",
    "write_secret backline",
    "run chmod 0600 $CONFIG/key.pem",
    "write_file root 0644 $CONFIG/nginx.conf",
    "run systemctl restart",
]
ARCHIVE = "/var/cache/apt/archives"
UNDO = """
systemctl disable --quiet --now backline-web backline-scheduler
systemctl stop nginx
rm -rf .env /etc/backline /etc/redis/backline.conf /etc/systemd/system/backline-* /etc/letsencrypt
sed -i /backline.conf/d /etc/redis/redis.conf
systemctl restart redis-server
mv /etc/nginx/nginx.conf.before-backline /etc/nginx/nginx.conf
mariadb -e 'DROP DATABASE backline; DROP USER backline@localhost, backline_migrate@localhost'
userdel backline
"""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def server(releases: Releases) -> Iterator[DebianServer]:
    with ExitStack() as stack:
        yield start(stack, running_debian_server(releases.bare))


def commands_of(page: str) -> list[str]:
    """Return the shell blocks and `sudo …` lines of a page in docs/, in order."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"^```sh\n(.+?)^```|`(sudo [^`]+)`", text, re.MULTILINE | re.DOTALL)
    return [block or line for block, line in found]


def run(server: DebianServer, command: str, answers: dict[str, str] | None = None) -> Completed:
    """Run a command in the project's folder as soon as there is one."""
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    if "<file>" in command:
        newest = server.run("ls /var/backups/backline | tail -1", user="root").stdout.strip()
        command = command.replace("<file>", newest)
    return server.run(f"cd /opt/backline 2>/dev/null || cd\n{command}", answers=answers)


def problems(done: Completed) -> list[str]:
    """Return what flask doctor does not like."""
    return re.findall(r"^(?:warn|fail)  (.+?):", done.stdout, re.MULTILINE)


def has_succeeded(server: DebianServer, command: str, done: Completed) -> bool:
    """Return whether a command did what it should. Its doctor cannot connect to Spotify here."""
    if done.returncode == 0 or problems(done) == ["Spotify"]:
        return True
    # On a busy machine, a server may respond too late for the doctor.
    doctor = command if "flask doctor" in command else DOCTOR
    return bool(problems(done)) and eventually(lambda: problems(run(server, doctor)) == ["Spotify"])


def responds(server: DebianServer, status: int) -> bool:
    command = ["--output", "/dev/null", "--write-out", "%{http_code}", "https://api.example.com/api/session"]
    return eventually(lambda: server.curl(*command) == str(status))


def post(server: DebianServer, path: str, body: str) -> str:
    headers = ["--header", "X-Requested-With: curl", "--header", "Content-Type: application/json"]
    return server.curl(*headers, "--data", body, f"https://api.example.com{path}")


def can_register(server: DebianServer) -> bool:
    # The second time, the name is taken.
    return eventually(lambda: '"username":"ada"' in post(server, "/api/register", ADA) or can_sign_in(server))


def can_sign_in(server: DebianServer) -> bool:
    return '"username":"ada"' in post(server, "/api/login", LOGIN)


def trust_authority(server: DebianServer) -> None:
    """Let Backline trust the certificate authority of this server, as it trusts the public ones."""
    bundles = ".venv/lib/python3*/site-packages/certifi/cacert.pem"
    server.run(f"cd /opt/backline && cat /etc/authorities.pem | tee $(ls {bundles}) >/dev/null", user="root")


@pytest.fixture(scope="module")
def installed(server: DebianServer, releases: Releases) -> DebianServer:
    """The server on which somebody has run all commands of docs/deploy.md."""
    for command in commands_of("deploy.md"):
        is_first = "--certbot" in command
        if "git pull" in command:
            releases.publish("Second commit")
            settings = server.run(SETTINGS, user="root").stdout
        elif command == "sudo deploy/backup":
            assert can_register(server)
        elif "deploy/restore" in command:
            server.run(f"mariadb backline -e 'DELETE FROM users'\n{OBSERVE}", user="root")

        done = run(server, command, answers={"Client secret": SECRET} if is_first else None)

        if is_first:
            trust_authority(server)
        assert has_succeeded(server, command, done), f"{command}\n{done.stdout[-4000:]}"
        assert responds(server, 503 if "touch /run/backline-maintenance" in command else 200)
        if "git pull" in command:
            assert server.run(SETTINGS, user="root").stdout == settings
        elif "deploy/restore" in command:
            assert eventually(lambda: can_sign_in(server))
    return server


@pytest.mark.requirement("K6")
def test_page_leads_from_a_bare_server_to_tls(installed: DebianServer) -> None:
    text = (ROOT / "docs/deploy.md").read_text()

    assert len(commands_of("deploy.md")) == text.count("```sh\n") + text.count("`sudo ") > 12
    assert (
        "Pebble"
        in installed.run(
            "sudo openssl x509 -noout -issuer -in /etc/letsencrypt/live/api.example.com/cert.pem"
        ).stdout
    )


@pytest.mark.requirement("K6")
def test_installed_service_may_do_little(installed: DebianServer) -> None:
    def root(command: str) -> str:
        return installed.run(f"cd /opt/backline\n{command} 2>&1 || true", user="root").stdout

    modes = root("stat -c '%n %a %U' .env /etc/backline/migrate.env /etc/redis/backline.conf")
    assert modes.split("\n") == [
        ".env 600 backline",
        "/etc/backline/migrate.env 600 root",
        "/etc/redis/backline.conf 640 redis",
        "",
    ]
    assert "DROP command denied" in root("runuser -u backline -- mariadb backline -e 'DROP TABLE users'")
    arguments = root("cat /root/arguments")
    assert "flask db upgrade" in arguments
    assert "backline_migrate" not in arguments
    assert "redis://" not in arguments  # it has a password
    assert "NOAUTH" in root("redis-cli ping")  # only Backline may use this Redis
    url = root("sed -n 's/^REDIS_URL=//p' .env").strip()
    scripts = ('"CONFIG","GET","dir"', '"FLUSHALL"', '"SET","elsewhere","1"')
    commands = [
        "CONFIG GET dir",
        "FLUSHALL",
        "KEYS '*'",
        "ACL LIST",
        "SET elsewhere 1",
        "PUBLISH session:a 1",
    ]
    for command in [*commands, *(f"EVAL 'redis.call({arguments})' 0" for arguments in scripts)]:
        reply = root(f"redis-cli -u {url} --no-auth-warning {command}")
        reasons = ("NOPERM", "can't run this command", "can't access", "not allowed from script")
        assert any(reason in reply for reason in reasons), (command, reply)
    for at in root("ss -ltnH | awk '{print $4}'").split():
        assert at.startswith(("127.", "[::1]:")) or at in ("0.0.0.0:443", "[::]:443"), at


@pytest.mark.requirement("K6")
def test_page_leads_to_another_release_and_back(installed: DebianServer, releases: Releases) -> None:
    version = run(installed, VERSION).stdout
    releases.add_release("0.2.0", head=version.split()[-1])
    output = {}
    for command in commands_of("upgrading.md"):
        done = run(installed, command)

        assert has_succeeded(installed, command, done), f"{command}\n{done.stdout[-4000:]}"
        assert responds(installed, 200)
        output[command.split()[-1]] = done.stdout
    assert output["version"] == "Backline 0.2.0, schema 9999\n"
    assert "9999 (head)" in output["current"]
    assert output["tag"].split() == ["v0.1.0", "v0.2.0"]
    assert run(installed, VERSION).stdout == version
    log = run(installed, "sudo journalctl -u backline-migrate -o cat").stdout
    assert "The schema is newer than this release, which works with it" in log
    assert eventually(lambda: can_sign_in(installed))


@pytest.mark.requirement("K6")
def test_what_goes_wrong_is_explained_and_can_be_repeated(installed: DebianServer) -> None:
    def root(command: str) -> Completed:
        return installed.run(f"cd /opt/backline\n{command}", user="root")

    before = root(SETTINGS).stdout
    other = root(FIRST.replace("--api api.", "--api apl."))
    assert "--api is apl.example.com, but /opt/backline/.env has another value" in other.stdout
    newest = "$(ls /var/backups/backline/*Z.sql.gz | tail -1)"
    assert "with --yes" in root(f"deploy/restore {newest} </dev/null").stdout
    assert root(SETTINGS).stdout == before

    # From here on, as if nothing had been installed but the packages, one of which is not finished.
    done = root(f"""{UNDO}
        cat >/root/kill.sh <<'EOF'\n{KILL}\nEOF
        mariadb -e "ALTER USER root@localhost IDENTIFIED BY 'known'"
        dpkg --force-depends --remove pkg-config && dpkg --unpack {ARCHIVE}/pkg-config_*.deb
        systemd-run --property=Type=exec --unit=other .venv/bin/python -m http.server 443
        until ss -ltnH | grep -q :443; do sleep 0.1; done""")
    assert done.returncode == 0, done.stdout
    assert re.search(r"Port 443 is in use by \w+", root(FIRST).stdout)
    root("systemctl stop other")
    assert "write it to /root/.my.cnf" in root(FIRST).stdout
    root("printf '[client]\\npassword=known\\n' >/root/.my.cnf")
    for command in KILLED_BEFORE:
        killed = root(f"KILL_AT='{command}' BASH_ENV=/root/kill.sh {FIRST}")
        assert killed.returncode == 137, (command, killed.stdout[-2000:])

    done = root(FIRST)

    assert has_succeeded(installed, FIRST, done), done.stdout[-4000:]
    assert responds(installed, 200)
    assert root("ls -A . /etc/backline /etc/redis /etc/nginx | grep -c '^.backline' || true").stdout == "0\n"
