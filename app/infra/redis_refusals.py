"""Replies by which a server refuses a command because another one is, or will be, in charge of the data.

A refused command has had no effect, so it can be repeated. redis-py reports most of these replies as
`ResponseError`, as if something were wrong with the command.
"""

import re

import redis
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError

# With their subclasses, those for MOVED and MASTERDOWN.
_KINDS = (ReadOnlyError, BusyLoadingError, ClusterDownError, AskError, TryAgainError)
# redis-py has no class for NOREPLICAS. Redis 6.2 quotes an error inside that of a script.
_CODES = re.compile("(?:^|-)(?:NOREPLICAS|READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|TRYAGAIN) ")


class Refused(redis.ConnectionError):
    """Redis refuses a command, also when it is repeated. `__cause__` is Redis' last reply."""


def is_refusal(error: object) -> bool:
    """Return whether an error says that this server does not execute a command, but another one might."""
    return isinstance(error, _KINDS) or (
        isinstance(error, redis.ResponseError) and _CODES.search(str(error)) is not None
    )
