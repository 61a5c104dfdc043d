"""Finds commands that would fail on a Redis Cluster, because their keys are in several slots.

Reads what MONITOR of a single server shows: a script, and after it the commands that the script sends.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
"""

import re
from collections.abc import Iterable, Iterator

LINE = re.compile(r'[\d.]+ \[\d+ (?P<source>[^\]]*)\] "(?P<name>\w+)"(?P<arguments>.*)', re.DOTALL)
ARGUMENT = re.compile(r'"((?:[^"\\]|\\.)*)"')
TAG = re.compile(r"\{([^{}]+)\}")

SCRIPTS = {"EVAL", "EVALSHA"}
# All arguments of these are keys.
SEVERAL_KEYS = {"DEL", "EXISTS", "MGET", "RENAME", "TOUCH", "UNLINK"}
KEYLESS = {"TIME", "ECHO", "PING"}


def split_commands(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of commands whose keys have different hash tags."""
    script = ""
    tag_of_script: str | None = None
    for line in lines:
        found = LINE.match(line)
        if found is None:
            continue
        name = found["name"].upper()
        is_from_script = found["source"] == "lua"
        if not is_from_script and name not in SCRIPTS and name not in SEVERAL_KEYS:
            continue
        tags: set[str | None] = {_tag(key) for key in _keys(name, found["arguments"])}
        if name in SCRIPTS:
            script, tag_of_script = line, next(iter(tags), None)
        elif is_from_script:
            tags.add(tag_of_script)
        if len(tags - {None}) > 1 or (is_from_script and tags == {None} and name not in KEYLESS):
            yield f"{line}, from {script}" if is_from_script else line


def _keys(name: str, text: str) -> list[str]:
    if name in KEYLESS:
        return []
    arguments = (found[1] for found in ARGUMENT.finditer(text))
    if name in SCRIPTS:
        next(arguments)
        return [next(arguments) for _ in range(int(next(arguments)))]
    return list(arguments) if name in SEVERAL_KEYS else [next(arguments)]


def _tag(key: str) -> str:
    found = TAG.search(key)
    return found[1] if found else key
