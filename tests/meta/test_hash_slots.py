"""The check of each test for Redis Cluster finds what it should (`_hash_slots` in `tests/conftest.py`)."""

from collections.abc import Iterator

import pytest
import redis

from tests.helpers.hash_slots import split_commands
from tests.helpers.secret_scanner import RedisCommands


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def commands(request: pytest.FixtureRequest) -> RedisCommands:
    """Return what the check reads."""
    commands: RedisCommands = request.getfixturevalue("_redis_commands")
    return commands


def read(commands: RedisCommands) -> list[str]:
    """Return what is found, and leave nothing to the check at the end of each test."""
    list(commands())
    lines, commands.lines = commands.lines, []
    return list(split_commands(lines))


@pytest.mark.parametrize("command", [("DEL", "a", "b"), ("MGET", "{a}:1", "{b}:1"), ("RENAME", "a", "{b}:a")])
def test_command_with_keys_in_several_slots_is_found(
    commands: RedisCommands, store: redis.Redis, command: tuple[str, ...]
) -> None:
    store.set("a", "")

    store.execute_command(*command)  # type: ignore[no-untyped-call]

    [line] = read(commands)
    assert f'"{command[0]}"' in line


def test_script_with_keys_in_several_slots_is_found(commands: RedisCommands, store: redis.Redis) -> None:
    store.eval("return 0", 2, "a", "b")

    [line] = read(commands)
    assert '"EVAL"' in line


def test_key_that_a_script_does_not_declare_is_found(commands: RedisCommands, store: redis.Redis) -> None:
    store.eval("redis.call('SET', KEYS[1], 1) redis.call('SET', 'b', 1)", 1, "a")

    [line] = read(commands)
    assert '[0 lua] "SET" "b"' in line


def test_keys_with_one_hash_tag_are_accepted(commands: RedisCommands, store: redis.Redis) -> None:
    store.eval("redis.call('SET', KEYS[1], redis.call('TIME')[1])", 2, "a", "b:{a}")
    store.rename("a", "{a}:b")
    store.delete("a", "a")
    store.set("b", "b")

    assert read(commands) == []
