"""What stops a server from starting, although its settings are valid."""

import logging
from collections.abc import Callable, Iterator

import redis
import sqlalchemy as sa
from flask import Flask

from app.infra.database import db
from app.infra.probes import pending_migration
from app.infra.redis_cluster import ClusterPool
from app.services import Services
from app.settings.start import refuse_to_start
from app.spotify.tokens import key_rotation

log = logging.getLogger(__name__)


def require_usable_servers(app: Flask, services: Services) -> None:
    """Exit with status 3 if starting again would not help. All reasons are listed, one line each.

    A server that is down is none of them: the app responds with 503 until it is back.
    """
    with app.app_context():
        problems = [*_find(_check_database, services), *_find(_check_redis, services)]
    if problems:
        refuse_to_start("\n".join(problems))


def _find(check: Callable[[Services], Iterator[str]], services: Services) -> list[str]:
    try:
        return list(check(services))
    except (sa.exc.SQLAlchemyError, redis.RedisError) as error:
        log.warning("startup_check_skipped", extra={"reason": type(error).__name__})
        return []


def _check_database(services: Services) -> Iterator[str]:
    with db.engine.connect() as connection:
        pending = pending_migration(connection)
    if pending is not None:
        if services.config.app_env == "production":  # in development, `flask run` says so and starts
            yield f"{pending} Run: flask db upgrade"
        return
    missing = key_rotation.missing_keys(services.token_cipher)
    if missing:
        keys = ", ".join(f"{key_id} ({count} rows)" for key_id, count in missing.items())
        yield (
            f"TOKEN_ENCRYPTION_KEYS lacks keys that stored tokens are encrypted with: {keys}. Add them back "
            "after the newest key. `flask tokens rotate-keys` then makes them unnecessary."
        )


def _check_redis(services: Services) -> Iterator[str]:
    if isinstance(services.redis.connection_pool, ClusterPool):
        return
    found: dict[str, object] = services.redis.info("cluster")  # type: ignore[assignment]
    if found.get("cluster_enabled"):
        yield "REDIS_URL leads to a node of a Redis Cluster. Use redis+cluster://host:6379,host:6379."
