"""Is everything there? Each check says what it looked at and, if it failed, what to do."""

import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import current_app
from sqlalchemy.engine import make_url

from app.database import db
from app.mail import InsecureConnection
from app.outbound import NoAnswer, Outbound
from app.parts import parts
from app.spotify import rekeying


@dataclass(frozen=True)
class Finding:
    good: bool
    what: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Run all checks, in the order in which one would want to mend them."""
    config = parts().config
    development = config.app_env == "development"
    yield Finding(
        True,
        f"settings: {config.app_env}",
        "Not for the public: set APP_ENV=production there." if development else "",
    )
    yield from _database()
    yield _redis()
    yield _mail()
    yield _spotify()
    if config.uses_sandbox:
        yield Finding(
            True,
            "Spotify application: the sandbox",
            "For the real Spotify set SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET "
            f"and register {config.spotify_redirect_uri} in its dashboard.",
        )
    else:
        yield Finding(
            True,
            f"Spotify application: {config.spotify_client_id}",
            f"Its dashboard must list this redirect URI, exactly: {config.spotify_redirect_uri}",
        )


def _database() -> Iterator[Finding]:
    # Without the query as well: a password may stand there.
    shown = make_url(parts().config.database_url).set(query={}).render_as_string(hide_password=True)
    try:
        with db.engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:  # a parameter in the URL that is none
        yield Finding(
            False, f"database: {shown}: {type(error).__name__}", "Is it running? Check DATABASE_URL."
        )
        return
    yield Finding(True, f"database: {shown}")
    head = ScriptDirectory(current_app.extensions["migrate"].directory).get_current_head()
    if revision == head:
        yield Finding(True, f"schema: {revision}")
        missing = rekeying.missing_keys()
        yield Finding(
            not missing,
            f"keys missing for stored tokens: {', '.join(missing)}" if missing else "keys of stored tokens",
            "Put them back into TOKEN_ENCRYPTION_KEYS, behind the newest." if missing else "",
        )
    else:
        yield Finding(
            False, f"schema: {revision or 'empty'}, but this release needs {head}", "Run: flask db upgrade"
        )


def _redis() -> Finding:
    try:
        server: Any = parts().redis.info("server")
    except (redis.RedisError, TypeError, ValueError) as error:  # a parameter in the URL that is none
        return Finding(False, f"Redis: {type(error).__name__}", "Is it running? Check REDIS_URL.")
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        return Finding(False, f"Redis {version}", "GETEX needs Redis 6.2 or newer.")
    return Finding(True, f"Redis {version}")


def _mail() -> Finding:
    mailer, host = parts().mailer, urlsplit(parts().config.mail_url).hostname
    if mailer.prints:
        return Finding(True, "mail: printed to standard error", "To send it, set MAIL_URL.")
    if host is None:
        return Finding(
            True, "mail: none is sent", "For forgotten passwords and verified addresses, set MAIL_URL."
        )
    try:
        mailer.examine()
    except InsecureConnection as error:
        return Finding(False, f"mail: {host} offers no encryption", str(error))
    except (OSError, smtplib.SMTPException, ValueError) as error:  # a password that is not ASCII
        return Finding(False, f"mail: {host}: {type(error).__name__}", "Is it right? Check MAIL_URL.")
    return Finding(True, f"mail: {host} answers, from {parts().config.mail_from}")


def _spotify() -> Finding:
    url = parts().config.spotify_accounts_url
    try:
        Outbound().send("GET", f"{url}/")
    except NoAnswer as error:
        return Finding(
            False, f"Spotify: {url} does not answer ({error})", "Check the network, or SPOTIFY_ACCOUNTS_URL."
        )
    return Finding(True, f"Spotify: {url} answers")
