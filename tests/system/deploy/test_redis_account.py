"""The Redis account of deploy/install, deploy/compose.yaml, and deploy/cluster: few keys, few commands."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from redis.exceptions import AuthenticationError

from app.infra.redis_keys import KEY_PREFIXES, PERMISSIONS
from tests.conftest import cannot_run
from tests.helpers.servers import ROOT, Unavailable, _directory, find_program, running_program

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes, pytest.mark.requirement("K6")]

PASSWORD = "a-password-for-redis"
FORBIDDEN: list[tuple[str | int, ...]] = [
    ("SET", "elsewhere", "1"),
    ("GET", "backup:session:1"),
    ("EVAL", "return redis.call('SET', 'elsewhere', '1')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("RENAME", "session:a", "elsewhere"),
    ("PUBLISH", "session:a", "1"),
    ("CONFIG", "GET", "dir"),
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("ACL", "LIST"),
]


@pytest.fixture(scope="module")
def composed() -> Iterator[redis.Redis]:
    """The account's client of a Redis that the command in compose.yaml has started."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    shell, option, script = compose["services"]["redis"]["command"]
    try:
        find_program("redis-server", "redis-server")
    except Unavailable as error:
        cannot_run(error)
    with _directory() as home:
        socket = home / "redis.sock"
        place = f" --port 0 --unixsocket {socket} --dir {home}"
        command = [shell, option, script.replace("$$", "$") + place]
        environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": PASSWORD}
        client = redis.Redis.from_url(f"unix://backline:{PASSWORD}@{socket}")
        with client, running_program(command, client.ping, env=environment, cwd=home):
            yield client


def test_account_may_not_use_other_keys_channels_and_commands(composed: redis.Redis) -> None:
    composed.set("session:a", "1")
    for command in FORBIDDEN:
        with pytest.raises(redis.ResponseError, match=r"permission|can't|not allowed") as raised:
            composed.execute_command(*command)  # type: ignore[no-untyped-call]
        assert "unknown" not in str(raised.value), command


def test_account_may_use_its_keys_and_nobody_else_may(composed: redis.Redis) -> None:
    for prefix in KEY_PREFIXES:
        assert composed.set(f"{prefix}:{{x}}", "1", px=1000)
    path = composed.connection_pool.connection_kwargs["path"]
    with redis.Redis(unix_socket_path=path) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def test_all_accounts_have_the_same_permissions() -> None:
    for path in ("deploy/install", "docs/operations.md"):
        assert PERMISSIONS in (ROOT / path).read_text(encoding="utf-8").replace("\\|", "|"), path
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    [granted] = re.findall(r'">\$\$REDIS_PASSWORD"\n(.*?)\n    environment', compose, re.DOTALL)
    assert " ".join(granted.replace("'", "").split()) == PERMISSIONS
    for name in ("redis.conf", "redis-cluster.conf"):
        lines = (ROOT / "deploy/cluster" / name).read_text(encoding="utf-8").splitlines()
        assert f"user backline on >REDIS_PASSWORD {PERMISSIONS}" in lines, name
        assert "user default off" in lines, name


def test_every_declared_key_is_used() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py"))

    assert [prefix for prefix in KEY_PREFIXES if not re.search(rf'"{prefix}:', code)] == []


def test_update_changes_the_permissions_and_keeps_the_password(tmp_path: Path) -> None:
    """An installation of an earlier release, with a line that the operator has added."""
    commands = """
        source <(sed '$d' "$0")  # without the last line, which runs all steps
        ENV_FILE=$1/.env REDIS_CONF=$1/backline.conf
        run_shell() { :; }
        ensure_running() { echo "$*"; }
        write_file() { [[ $3 == "$1"/* || $3 == "$REDIS_CONF" ]] && printf '%s\\n' "$4" >"$3"; }
        configure_redis
    """
    (tmp_path / ".env").touch()
    file = tmp_path / "backline.conf"
    file.write_text("maxmemory 1gb\nuser default off\nuser backline on #0123abcd ~* +@read +@write\n")

    def update() -> str:
        command = ["bash", "-c", commands, str(ROOT / "deploy/install"), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert update() == "==> Configuring Redis\nredis-server restart\n"
    assert file.read_text() == f"maxmemory 1gb\nuser default off\nuser backline on #0123abcd {PERMISSIONS}\n"
    assert update() == ""
