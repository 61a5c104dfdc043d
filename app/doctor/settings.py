"""Checks for settings that are valid, but rarely intended."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from urllib.parse import urlsplit

from app.doctor.result import CheckResult, ok, warning
from app.settings.database_url import parse_database_url
from app.settings.redis_urls import is_unencrypted_redis
from app.settings.urls import host_name, is_app_origin, is_loopback, may_be_same_site, origin_of
from config import Config


def check_settings(config: Config) -> Iterator[CheckResult]:
    """Check the settings without connecting to anything."""
    if config.app_env == "production":
        yield from _check_insecure(config)
        yield from _check_redirect_uri(config)
    yield from _check_origins(config)
    yield _check_cookie(config)


def check_names(names: Iterable[str]) -> Iterator[CheckResult]:
    """Check the names of variables: one that is misspelled has no effect."""
    settings = {name.upper() for name in Config.model_fields}
    for name in sorted(set(names) - settings):
        for meant in get_close_matches(name, settings, n=1, cutoff=0.85):
            yield warning(f"{name} is not a setting, and is ignored", f"{meant} is one.")


def guess_proxies(config: Config) -> Iterator[CheckResult]:
    """Check that visitors have different addresses. gunicorn listens on loopback, so there is a proxy.

    This only guesses what the proxies do. `app.doctor.proxies` asks them.
    """
    count = config.trusted_proxies
    if count == 1:
        yield ok(
            "client addresses: reported by one proxy",
            "If there is a CDN or a load balancer in front of nginx, list its addresses in deploy/nginx.conf "
            "(set_real_ip_from). Otherwise, all visitors share its address and the rate limits.",
        )
    elif count > 1:
        yield warning(
            f"client addresses: TRUSTED_PROXIES={count} expects {count} entries in X-Forwarded-For",
            "deploy/nginx.conf writes only one entry, so all visitors may share one address and the rate "
            "limits. With it, set TRUSTED_PROXIES=1 and list a CDN's addresses there (set_real_ip_from).",
        )
    elif not config.is_local:
        yield warning(
            "client addresses: TRUSTED_PROXIES is 0",
            "Behind a proxy, all visitors share its address and the rate limits, and links in the gateway's "
            "responses begin with http://. Set TRUSTED_PROXIES to 1 for deploy/nginx.conf, or to the number "
            "of proxies that add to X-Forwarded-For.",
        )


def _check_insecure(config: Config) -> Iterator[CheckResult]:
    if config.allow_insecure:
        yield warning(
            f"insecure settings allowed: {', '.join(sorted(config.allow_insecure))}",
            "Remove what you no longer need from ALLOW_INSECURE.",
        )
    if unencrypted := list(_unencrypted(config)):
        yield warning(
            f"connections to another machine without TLS: {', '.join(unencrypted)}",
            "On a network that others use too, turn on TLS: a rediss:// URL for Redis, and ssl_ca in "
            "DATABASE_URL.",
        )


def _check_redirect_uri(config: Config) -> Iterator[CheckResult]:
    callback, origin = urlsplit(config.spotify_redirect_uri), origin_of(config.spotify_redirect_uri)
    names = [host_name(host) for host in config.trusted_hosts]
    if config.redirects_to_api:
        if not any(_matches_host(callback.hostname or "", name) for name in names):
            yield warning(
                f"SPOTIFY_REDIRECT_URI: {callback.hostname} is not in TRUSTED_HOSTS",
                "Add it, unless a proxy changes the Host header. Otherwise, no one can connect Spotify.",
            )
    elif callback.scheme == "https" and origin not in config.cors_origins and callback.hostname not in names:
        yield warning(
            f"SPOTIFY_REDIRECT_URI: {origin} is not in CORS_ORIGINS",
            "Add it, unless this address opens a mobile or desktop app. Otherwise, the page cannot "
            "complete the connection.",
        )


def _check_origins(config: Config) -> Iterator[CheckResult]:
    names = [host_name(host) for host in config.trusted_hosts] or ["127.0.0.1"]
    if config.redirects_to_api:
        names = [urlsplit(config.spotify_redirect_uri).hostname or ""]
    if config.session_cookie_samesite == "None":
        return
    scheme = "http" if config.is_local else "https"
    for origin in config.cors_origins:
        if any(may_be_same_site(origin, f"{scheme}://{name}") for name in names):
            continue
        exception = ""
        if is_app_origin(origin):
            exception = ", unless an extension has permission for this host or an app bypasses its web view"
        remedy = "Set SESSION_COOKIE_SAMESITE=None, or serve the app and the API under one domain."
        if config.is_local:  # without https, browsers reject SameSite=None
            remedy = f"Open the app at {scheme}://{names[0]}, and list that origin."
        yield warning(
            f"CORS_ORIGINS: {origin} is on another site than {', '.join(names)}",
            f"Browsers do not send the session cookie from there{exception}. {remedy}",
        )


def _check_cookie(config: Config) -> CheckResult:
    same_site, is_secure = config.session_cookie_samesite, config.session_cookie_secure
    partitioned = "; Partitioned" if same_site == "None" else ""
    summary = (
        f"session cookie: {config.session_cookie_name}{'; Secure' * is_secure}; HttpOnly; "
        f"SameSite={same_site}{partitioned}"
    )
    if config.is_local and is_secure:
        return warning(
            summary,
            "Not every browser accepts a Secure cookie over plain http, even from its own machine. Remove "
            "SESSION_COOKIE_SECURE, or use https.",
        )
    return ok(summary)


def _unencrypted(config: Config) -> Iterator[str]:
    database = parse_database_url(config.database_url)
    has_tls = any(name.startswith("ssl") for name in database.url.query)
    if not has_tls and not all(is_loopback(host.name) for host in database.hosts):
        yield "the database"
    if is_unencrypted_redis(config.redis_url):
        yield "Redis"


def _matches_host(host: str, pattern: str) -> bool:
    return host == pattern or (pattern.startswith(".") and host.endswith(pattern))
