"""deploy/gunicorn.conf.py, with more time for the tests' own Redis, which may wait for a busy machine."""

import runpy
from pathlib import Path
from typing import Any

# The configuration of the project that gunicorn runs in, which may be a copy.
globals().update(runpy.run_path(str(Path("deploy/gunicorn.conf.py").resolve())))


def post_fork(_server: Any, _worker: Any) -> None:
    """Change the limits in the worker: the arbiter must not import the app."""
    from app.infra import redis_client, redis_connection

    redis_client.REPLY_SECONDS = 120.0
    for module in (redis_client, redis_connection):
        vars(module)["CONNECT_SECONDS"] = 120.0
