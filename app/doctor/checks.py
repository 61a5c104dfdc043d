"""All checks of `flask doctor`, with those of the mail server and Spotify."""

import smtplib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sqlalchemy as sa

from app.doctor.database import check_database
from app.doctor.proxies import check_proxies
from app.doctor.redis_server import check_redis
from app.doctor.result import CheckResult, Status, failure, ok, warning
from app.doctor.settings import check_names, check_settings, guess_proxies
from app.infra.http_client import HttpClient
from app.mail.mailer import Mailer
from app.mail.transport import InsecureConnection
from app.models import AppState
from app.services import Services
from app.spotify.applications.lookup import count_by_state, count_of_deployment
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.application import Application
from app.spotify.clients.errors import Misconfigured, SpotifyError, SpotifyTransportError
from config import Config, read_environment

if TYPE_CHECKING:
    from app.auth.jwt_issuer import JwtIssuer


def run_checks(services: Services, url: str | None = None) -> Iterator[CheckResult]:
    """Run all checks, in the order in which problems should be corrected.

    Args:
        services: What to check.
        url: Where people reach the API; what its proxies do is only guessed if None.
    """
    config = services.config
    if config.app_env == "development":
        yield ok(
            "settings: development", "Set APP_ENV=production before you put this server on the internet."
        )
    else:
        yield ok(f"settings: {config.app_env}")
    yield from check_names(read_environment())
    yield from check_settings(config)
    yield from guess_proxies(config) if url is None else check_proxies(config, url, HttpClient())
    yield from check_database(config, services.token_cipher)
    is_production = config.app_env == "production"
    yield from check_redis(services.redis, is_production=is_production, url=config.redis_url)
    yield _check_mail(config, services.mailer)
    yield _describe_jwts(services.jwt_issuer)
    application = services.applications.deployment
    if application is not None:
        yield _check_spotify(config, services.accounts, application)
        yield _describe_spotify_app(config)
    else:
        yield from _describe_waiting()
    yield from _describe_own_apps()


def find_missing(services: Services) -> Iterator[str]:
    """Describe what a server that is about to start lacks, one line each, with the command that fixes it."""
    config = services.config
    results = [
        *check_database(config, services.token_cipher),
        *check_redis(services.redis, is_production=False),
    ]
    application = services.applications.deployment
    if config.uses_sandbox and application is not None:
        results.append(_check_spotify(config, services.accounts, application))
    missing = [result for result in results if result.status is Status.FAILURE]
    for result in missing:
        yield f"{result.summary}. {result.advice}"
    if missing and config.app_env == "development":
        yield "script/server starts all of them."


def _check_mail(config: Config, mailer: Mailer) -> CheckResult:
    if mailer.to_console:
        return ok("mail: printed to standard error", "To send email, set MAIL_URL.")
    if not mailer.is_configured:
        return ok(
            "mail: not configured",
            "People cannot reset passwords or verify email addresses. To send email, set MAIL_URL.",
        )
    host = urlsplit(config.mail_url).hostname
    try:
        mailer.check_connection()
    except InsecureConnection as error:
        return failure(f"mail: {host} offers no encryption", str(error))
    except (OSError, smtplib.SMTPException, ValueError) as error:  # ValueError: a password that is not ASCII
        return failure(
            f"mail: cannot connect to {host} ({type(error).__name__})",
            "Check MAIL_URL, and whether the mail server is running.",
        )
    return ok(f"mail: connected to {host}, sending from {config.mail_from}")


def _describe_jwts(issuer: "JwtIssuer | None") -> CheckResult:
    if issuer is None:
        return ok("JWTs: off", "To issue them to other services, set JWT_SIGNING_KEYS and JWT_AUDIENCES.")
    newest, *older = [key["kid"][:8] for key in issuer.public_keys]
    also = f", and also publishing {', '.join(older)}" if older else ""
    return ok(
        f"JWTs: signed with key {newest}{also}",
        f"For {', '.join(issuer.audiences)}. The keys are at /.well-known/jwks.json.",
    )


def _check_spotify(config: Config, accounts: SpotifyAccounts, application: Application) -> CheckResult:
    url = config.spotify_accounts_url
    try:
        accounts.check_client(application)
    except Misconfigured as error:
        return failure(
            f"Spotify: {url} rejects this application ({error})",
            "Compare SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET with the Spotify dashboard.",
        )
    except SpotifyTransportError as error:
        return failure(
            f"Spotify: {url} does not respond ({error.__cause__})",
            "Run: python -m sandbox"
            if config.uses_sandbox
            else "Check the network connection and SPOTIFY_ACCOUNTS_URL.",
        )
    except SpotifyError as error:
        return warning(
            f"Spotify: {url} cannot confirm the client id and secret now ({error})",
            "Try again in a few minutes, and check SPOTIFY_ACCOUNTS_URL.",
        )
    return ok(f"Spotify: {url} accepts the client id and secret")


def _describe_waiting() -> Iterator[CheckResult]:
    """Describe the connections that need the application of this server, which has none."""
    try:
        count = count_of_deployment()
    except sa.exc.SQLAlchemyError:
        return
    if count:
        yield warning(
            f"Spotify application: none, but {count} connections were made with one of this server",
            "They wait, and nothing is sent to Spotify for them. Set SPOTIFY_CLIENT_ID and "
            "SPOTIFY_CLIENT_SECRET to that application; or their owners connect with their own.",
        )


def _describe_own_apps() -> Iterator[CheckResult]:
    """Describe the applications that people have registered. Without a database, there is nothing to say."""
    try:
        by_state = count_by_state()
    except sa.exc.SQLAlchemyError:
        return
    total, active = sum(by_state.values()), by_state.pop(AppState.ACTIVE, 0)
    if not total:
        return
    counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in by_state.items())
    summary = f"own Spotify applications: {total}" + (f", of which {counts}" if counts else "")
    advice = "flask apps list --paused shows which, and until when." if total > active else ""
    if AppState.REFUSED in by_state:
        yield warning(summary, f"{advice} Their owners have to correct those that Spotify refuses.")
    else:
        yield ok(summary, advice)


def _describe_spotify_app(config: Config) -> CheckResult:
    if config.uses_sandbox:
        return ok(
            "Spotify application: sandbox",
            "To use the real Spotify, set SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET, and add this redirect "
            f"URI to your application in the Spotify dashboard: {config.spotify_redirect_uri}",
        )
    return ok(
        f"Spotify application: {config.spotify_client_id}",
        f"The Spotify dashboard must list exactly this redirect URI: {config.spotify_redirect_uri}",
    )
