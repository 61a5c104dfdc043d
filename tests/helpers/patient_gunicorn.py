"""deploy/gunicorn.conf.py, with more time for the tests' own Redis, which may wait for a busy machine.

TESTS_CALL_SECONDS is a limit for calls to Spotify, if it is set.
"""

import os
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
    if "TESTS_CALL_SECONDS" in os.environ:
        _limit_calls_to_spotify(float(os.environ["TESTS_CALL_SECONDS"]))


def _limit_calls_to_spotify(seconds: float) -> None:
    from app.infra import http_client, http_deadline

    # Before they are imported elsewhere.
    http_client.TOTAL_SECONDS = http_deadline.FIRST_BYTE_SECONDS = seconds
    from app.spotify.clients import web_api

    web_api.CALL_SECONDS = seconds
    from app.spotify.gateway import proxy

    proxy.TOTAL_SECONDS = seconds
