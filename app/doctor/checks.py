"""Is everything there? Each check says what it looked at and, if it failed, what to do."""

import smtplib
from collections.abc import Iterator
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from app.doctor.result import CheckResult
from app.doctor.stores import check_database, check_redis
from app.infra.http_client import HttpClient, TransportError
from app.mail.transport import InsecureConnection
from app.services import services
from config import Config
from settings.urls import host_name, is_app_origin, is_loopback, may_be_same_site, origin_of


def run_checks() -> Iterator[CheckResult]:
    """Run all checks, in the order in which one would want to mend them."""
    config = services().config
    development = config.app_env == "development"
    yield CheckResult(
        True,
        f"settings: {config.app_env}",
        "Not for the public: set APP_ENV=production there." if development else "",
    )
    yield from check_settings(config)
    yield from check_database()
    yield check_redis()
    yield _mail()
    yield _spotify()
    if config.uses_sandbox:
        yield CheckResult(
            True,
            "Spotify application: the sandbox",
            "For the real Spotify set SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET "
            f"and register {config.spotify_redirect_uri} in its dashboard.",
        )
    else:
        yield CheckResult(
            True,
            f"Spotify application: {config.spotify_client_id}",
            f"Its dashboard must list this redirect URI, exactly: {config.spotify_redirect_uri}",
        )


def check_settings(config: Config) -> Iterator[CheckResult]:
    """Look for settings that are allowed, but right only in an unusual deployment."""
    yield from _proxies(config)
    if config.app_env == "production":
        yield from _insecure_parts(config)
        yield from _callback(config)
        yield from _cookies_across_sites(config)


def _proxies(config: Config) -> Iterator[CheckResult]:
    """Whether visitors are told apart. gunicorn listens on loopback, so the public comes through a proxy."""
    count = config.trusted_proxies
    if count == 1:
        yield CheckResult(
            True,
            "client addresses: as reported by one proxy",
            "If a CDN or load balancer is in front of nginx, enter its addresses in deploy/nginx.conf "
            "(set_real_ip_from). Otherwise all visitors have its address and share the limits.",
        )
    elif count > 1:
        yield CheckResult(
            True,
            f"client addresses: TRUSTED_PROXIES={count} expects {count} entries in X-Forwarded-For",
            "deploy/nginx.conf writes only one, so all visitors may have one address and share the limits. "
            "Behind it, set 1, and enter a CDN's addresses in deploy/nginx.conf (set_real_ip_from).",
            doubtful=True,
        )
    elif not config.is_local:
        yield CheckResult(
            True,
            "client addresses: TRUSTED_PROXIES is 0",
            "Behind a proxy, all visitors have its address and share the limits. Set 1 for "
            "deploy/nginx.conf, or the number of proxies that add to X-Forwarded-For.",
            doubtful=True,
        )


def _insecure_parts(config: Config) -> Iterator[CheckResult]:
    if config.allow_insecure:
        yield CheckResult(
            True,
            f"accepted although insecure: {', '.join(sorted(config.allow_insecure))}",
            "Remove from ALLOW_INSECURE what no longer applies.",
            doubtful=True,
        )
    if unencrypted := list(_unencrypted(config)):
        yield CheckResult(
            True,
            f"connections without TLS to another machine: {', '.join(unencrypted)}",
            "In a network that others use too, turn TLS on: rediss://..., and ssl_ca in DATABASE_URL.",
            doubtful=True,
        )


def _callback(config: Config) -> Iterator[CheckResult]:
    callback = urlsplit(config.spotify_redirect_uri)
    origin = origin_of(config.spotify_redirect_uri)
    names = [host_name(host) for host in config.trusted_hosts]
    if config.redirects_to_api:
        if not any(_is_named(callback.hostname or "", name) for name in names):
            yield CheckResult(
                True,
                f"SPOTIFY_REDIRECT_URI: {callback.hostname} is not in TRUSTED_HOSTS",
                "Add it, unless a proxy changes the Host header. Otherwise no one can connect Spotify.",
                doubtful=True,
            )
    elif callback.scheme == "https" and origin not in config.cors_origins and callback.hostname not in names:
        yield CheckResult(
            True,
            f"SPOTIFY_REDIRECT_URI: {origin} is not in CORS_ORIGINS",
            "Add it, unless that address opens an app. Otherwise its page cannot complete the connection.",
            doubtful=True,
        )


def _cookies_across_sites(config: Config) -> Iterator[CheckResult]:
    names = [host_name(host) for host in config.trusted_hosts]
    if config.redirects_to_api:
        names = [urlsplit(config.spotify_redirect_uri).hostname or ""]
    if config.session_cookie_samesite == "None" or any(map(is_loopback, names)):
        return
    for origin in config.cors_origins:
        if not any(may_be_same_site(origin, f"https://{name}") for name in names):
            exception = (
                ", unless an extension has permission for this host or an app sends requests outside of its "
                "web view"
                if is_app_origin(origin)
                else ""
            )
            yield CheckResult(
                True,
                f"CORS_ORIGINS: {origin} is on another site than {', '.join(names)}",
                f"The session cookie will not be sent from there{exception}. Set "
                "SESSION_COOKIE_SAMESITE=None, or serve app and API under one domain.",
                doubtful=True,
            )


def _unencrypted(config: Config) -> Iterator[str]:
    database, cache = make_url(config.database_url), urlsplit(config.redis_url)
    is_mysql = database.get_backend_name() == "mysql" and "unix_socket" not in database.query
    if (
        is_mysql
        and not is_loopback(database.host)
        and not any(name.startswith("ssl") for name in database.query)
    ):
        yield "the database"
    if cache.scheme == "redis" and not is_loopback(cache.hostname or "localhost"):
        yield "Redis"


def _is_named(host: str, name: str) -> bool:
    return host == name or (name.startswith(".") and host.endswith(name))


def _mail() -> CheckResult:
    mailer, host = services().mailer, urlsplit(services().config.mail_url).hostname
    if mailer.to_console:
        return CheckResult(True, "mail: printed to standard error", "To send it, set MAIL_URL.")
    if host is None:
        return CheckResult(
            True, "mail: none is sent", "For forgotten passwords and verified addresses, set MAIL_URL."
        )
    try:
        mailer.check_connection()
    except InsecureConnection as error:
        return CheckResult(False, f"mail: {host} offers no encryption", str(error))
    except (OSError, smtplib.SMTPException, ValueError) as error:  # a password that is not ASCII
        return CheckResult(False, f"mail: {host}: {type(error).__name__}", "Is it right? Check MAIL_URL.")
    return CheckResult(True, f"mail: {host} answers, from {services().config.mail_from}")


def _spotify() -> CheckResult:
    url = services().config.spotify_accounts_url
    try:
        HttpClient().send("GET", f"{url}/")
    except TransportError as error:
        return CheckResult(
            False, f"Spotify: {url} does not answer ({error})", "Check the network, or SPOTIFY_ACCOUNTS_URL."
        )
    return CheckResult(True, f"Spotify: {url} answers")
