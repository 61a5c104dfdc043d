"""Which places of the product send commands with keys to Redis, and which of them were used.

As a plugin of pytest (`-p tests.helpers.redis_uses`), this records what is sent to a Redis Cluster, and
writes it to the file that `REDIS_USES` names.
"""

import ast
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import redis

from app.infra.redis_cluster import ClusterPool, slot_of
from app.infra.redis_scripts import Script
from tests.helpers.servers import ROOT

APP = ROOT / "app"
# These modules send what others have built.
TRANSPORT = {
    f"app/infra/redis_{name}.py"
    for name in ("client", "cluster", "connection", "round_trip", "scripts", "sentinel")
}
SENDING_FUNCTIONS = {"round_trip", "values_of", "compare_and_set"}
SENDING_METHODS = {("redis_scripts", "call"), ("redis_scripts", "run"), ("pool", "exchange")}
CLIENTS = {"client", "_client"}
SCRIPTS = {b"EVAL", b"EVALSHA", "EVAL", "EVALSHA"}
KEYLESS = {"acl_dryrun", "close", "config_get", "execute_command", "info", "ping", "time"}

_used: set[tuple[str, int]] = set()
_prefixes: set[str] = set()


@dataclass(frozen=True, order=True)
class Place:
    """A call that sends a command with keys, or builds one from a script."""

    path: str
    first: int
    last: int
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.first} {self.source}"


def places() -> Iterator[Place]:
    """Yield all places."""
    for file in sorted(APP.rglob("*.py")):
        path = str(file.relative_to(ROOT))
        text = file.read_text(encoding="utf-8")
        if path in TRANSPORT or "redis" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and _sends(node.func):
                yield Place(path, node.lineno, node.end_lineno or node.lineno, ast.unparse(node.func))


def unused(recorded: Path) -> list[Place]:
    """Return the places that were not used in a recorded run."""
    lines = {tuple(line) for line in json.loads(recorded.read_text())["lines"]}
    return [
        place
        for place in places()
        if not any((place.path, line) in lines for line in range(place.first, place.last + 1))
    ]


def prefixes(recorded: Path) -> set[str]:
    """Return the prefixes of the keys that were used in a recorded run."""
    return set(json.loads(recorded.read_text())["prefixes"])


def _sends(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in SENDING_FUNCTIONS
    if not isinstance(function, ast.Attribute):
        return False
    receiver = ast.unparse(function.value).rpartition(".")[2]
    if receiver in CLIENTS:
        return function.attr not in KEYLESS and hasattr(redis.Redis, function.attr)
    is_script = receiver.startswith("_") or receiver == "script"
    return (is_script and function.attr == "command") or (receiver, function.attr) in SENDING_METHODS


# --- the plugin ---------------------------------------------------------------------------------


def pytest_configure() -> None:
    """Record from now on."""
    exchange, repeat, command = ClusterPool.exchange, ClusterPool.repeat, Script.command

    def record_exchange(pool: ClusterPool, commands: Any) -> Any:
        _record(sys._getframe(1), commands)
        return exchange(pool, commands)

    def record_repeat(pool: ClusterPool, commands: Any, errors: Any) -> Any:
        _record(sys._getframe(1), commands)
        return repeat(pool, commands, errors)

    def record_command(script: Script, *arguments: Any) -> Any:
        _record(sys._getframe(1), ())
        return command(script, *arguments)

    for owner, name, recorded in (
        (ClusterPool, "exchange", record_exchange),
        (ClusterPool, "repeat", record_repeat),
        (Script, "command", record_command),
    ):
        patch.object(owner, name, recorded).start()


def pytest_unconfigure() -> None:
    """Write what was recorded."""
    recorded = {"lines": sorted(_used), "prefixes": sorted(_prefixes)}
    Path(os.environ["REDIS_USES"]).write_text(json.dumps(recorded))


def _record(caller: FrameType | None, commands: Any) -> None:
    for sent in commands:
        if slot_of(sent) is not None:
            keys = sent[3 : 3 + sent[2]] if sent[0] in SCRIPTS else sent[1:2]
            _prefixes.update(str(key).partition(":")[0] for key in keys)
    while caller is not None:
        if caller.f_code.co_filename.startswith(f"{APP}/"):
            _used.add((str(Path(caller.f_code.co_filename).relative_to(ROOT)), caller.f_lineno))
        caller = caller.f_back
