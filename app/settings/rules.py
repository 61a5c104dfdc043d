"""Rules about combinations of settings, and about values that are valid but insecure.

Each rule yields messages that begin with the name of a setting.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from app.settings.database_url import parse_database_url
from app.settings.redis_urls import is_exposed_redis, redis_password
from app.settings.types import NEW_BYTES_KEY, NEW_TEXT_KEY
from app.settings.urls import (
    host_name,
    is_app_origin,
    is_browsers_machine,
    is_loopback,
    may_be_same_site,
    origin_of,
)

if TYPE_CHECKING:
    from config import Config

AUTHORIZE_PATH = "/api/spotify/authorize"
# The default client id of `python -m sandbox`. It is public, and worthless anywhere else.
SANDBOX_CLIENT_ID = "5a4db0c0ffee4b0cac1e5a4db0c0ffee"
SANDBOX_CLIENT_SECRET = "sandbox-secret-not-for-production"  # noqa: S105
CREDENTIALS = ("spotify_client_id", "spotify_client_secret")


def lacks_application(config: "Config") -> bool:
    """Return whether the deployment has no application, because everyone brings their own."""
    return config.spotify_apps == "own" and "spotify_client_id" not in config.model_fields_set


def problems_of(config: "Config", invalid: set[str]) -> Iterator[str]:
    """Apply the rules, except for those about settings that are `invalid` by themselves."""
    for rule, settings in (*_RULES, *_RULES_OF[config.app_env]):
        if invalid.isdisjoint(settings):
            yield from (line for line in rule(config) if re.split("[ :=]", line)[0] not in invalid)


def _client_credentials_rule(config: "Config") -> Iterator[str]:
    has_id, has_secret = (name in config.model_fields_set for name in CREDENTIALS)
    if has_secret and not has_id:
        yield "SPOTIFY_CLIENT_SECRET is set, but SPOTIFY_CLIENT_ID is not. Set both or neither."
    if has_id and not has_secret:
        yield "SPOTIFY_CLIENT_SECRET is not set, but SPOTIFY_CLIENT_ID is. Set both or neither."


def _sign_in_rule(config: "Config") -> Iterator[str]:
    if lacks_application(config) and config.spotify_sign_in:
        yield "SPOTIFY_CLIENT_ID is not set, but SPOTIFY_SIGN_IN is. It needs that application."


def _jwt_rule(config: "Config") -> Iterator[str]:
    if config.jwt_signing_keys and not config.jwt_audiences:
        yield "JWT_AUDIENCES is not set, but JWT_SIGNING_KEYS is. Set both or neither."
    if config.jwt_audiences and not config.jwt_signing_keys:
        yield f"JWT_SIGNING_KEYS is not set, but JWT_AUDIENCES is. Set both or neither. {NEW_TEXT_KEY}"


def _cookie_rules(config: "Config") -> Iterator[str]:
    same_site = config.session_cookie_samesite
    if same_site == "None" and not config.session_cookie_secure:
        yield "SESSION_COOKIE_SAMESITE=None needs SESSION_COOKIE_SECURE=true, and https."
    if config.redirects_to_api and same_site != "Lax":
        reason = (
            "browsers keep this cookie separately for each site that the app is on, so it would be missing"
            if same_site == "None"
            else "browsers would not send this cookie"
        )
        yield (
            f"SESSION_COOKIE_SAMESITE={same_site} does not work while SPOTIFY_REDIRECT_URI leads to this "
            f"API: {reason} when Spotify sends people back, and no one could connect Spotify. Point "
            "SPOTIFY_REDIRECT_URI at a page of your app, or use Lax with app and API under one domain."
        )


def _redirect_uri_rule(config: "Config") -> Iterator[str]:
    """At this API, only one path completes an authorization."""
    parts = urlsplit(config.spotify_redirect_uri)
    origin = origin_of(config.spotify_redirect_uri)
    path = re.sub(r"[/\\]+", "/", unquote(parts.path)).partition(";")[0].lower()
    path = posixpath.normpath(path).rstrip(". ")
    if is_loopback(parts.hostname):
        is_api = parts.port == config.port
    else:
        is_api_host = (parts.hostname or "") in map(host_name, config.trusted_hosts)
        serves_pages = origin in (*config.cors_origins, origin_of(config.frontend_url))
        is_api = is_api_host and (f"{path}/".startswith("/api/") or not serves_pages)
    if not config.redirects_to_api and (is_api or path.endswith(AUTHORIZE_PATH)):
        yield (
            "SPOTIFY_REDIRECT_URI leads to this API, but not to the path that completes an authorization, "
            f"so no one could connect Spotify. Use exactly {origin}{AUTHORIZE_PATH} (no slash at the end, no "
            "query)."
        )


def _spotify_app_rules(config: "Config") -> Iterator[str]:
    if lacks_application(config):
        return
    if config.spotify_client_id == SANDBOX_CLIENT_ID:
        yield "SPOTIFY_CLIENT_ID is the sandbox's. Use your own application's, from Spotify's dashboard."
    secret = config.spotify_client_secret
    if secret == SANDBOX_CLIENT_SECRET or _is_placeholder(secret):
        yield (
            "SPOTIFY_CLIENT_SECRET is the sandbox's, or an example. Use your own application's, from "
            "Spotify's dashboard."
        )


def _debug_rule(config: "Config") -> Iterator[str]:
    if config.flask_debug:
        yield (
            "FLASK_DEBUG is on, so anyone who causes an error could run code on this server. Remove it, and "
            "do not use flask --debug."
        )


def _plain_http_rules(config: "Config") -> Iterator[str]:
    """Plain http is safe only where it does not leave the machine."""
    if not config.is_local:
        if config.redirects_to_api and config.spotify_redirect_uri.lower().startswith("http:"):
            yield (
                "SPOTIFY_REDIRECT_URI leads people to their own machine. Use the public https address of "
                "this API, or of a page of your app."
            )
        if not config.session_cookie_secure:
            yield (
                "SESSION_COOKIE_SECURE=false would let the session cookie travel unencrypted. Remove the "
                "line, or set it to true."
            )
    if _is_unsafe_http(config, config.frontend_url):
        yield "FRONTEND_URL is plain http, so links in emails could be intercepted. Use https."
    for origin in config.cors_origins:
        if _is_unsafe_http(config, origin) and not _is_shell_page(origin):
            yield (
                f"CORS_ORIGINS: {origin} is plain http, so anyone on the way could act through its pages. "
                "Use https, and remove origins that are for development."
            )


def _is_unsafe_http(config: "Config", url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not (config.is_local and is_browsers_machine(parts.hostname))


def _is_shell_page(origin: str) -> bool:
    """Return whether an origin is one that Tauri serves an app's pages from, such as http://tauri.localhost."""
    return urlsplit(origin).netloc.endswith(".localhost")


def _same_site_rule(config: "Config") -> Iterator[str]:
    """Only a redirect URI that leads to the API shows for certain where browsers reach the API."""
    is_reported_already = config.spotify_redirect_uri.lower().startswith("http:") and not config.is_local
    if config.session_cookie_samesite == "None" or not config.redirects_to_api or is_reported_already:
        return
    for origin in config.cors_origins:
        if _is_unsafe_http(config, origin) or is_app_origin(origin):
            continue
        if not may_be_same_site(origin, config.spotify_redirect_uri):
            yield (
                f"CORS_ORIGINS: {origin} is on another site than {origin_of(config.spotify_redirect_uri)}, "
                "so browsers would not send the session cookie from there. Serve both under one domain, or "
                "set SESSION_COOKIE_SAMESITE=None and point SPOTIFY_REDIRECT_URI at a page of your app."
            )


def _database_rules(config: "Config") -> Iterator[str]:
    url = parse_database_url(config.database_url).url
    if url.get_backend_name() == "sqlite" and "sqlite" not in config.allow_insecure:
        yield (
            "DATABASE_URL is SQLite, which is for development. Use mysql+mysqldb://..., or accept it with "
            "ALLOW_INSECURE=sqlite."
        )
    if _is_default_password(url.password):
        yield "DATABASE_URL has a password from examples and defaults. Use one that no one can guess."


def _redis_rules(config: "Config") -> Iterator[str]:
    if is_exposed_redis(config.redis_url) and "redis" not in config.allow_insecure:
        yield (
            "REDIS_URL reaches another machine without a password or TLS, so anyone on that network could "
            "read and change sessions. Use redis://:password@... or rediss://..., or accept it with "
            "ALLOW_INSECURE=redis."
        )
    if _is_default_password(redis_password(config.redis_url)):
        yield "REDIS_URL has a password from examples and defaults. Use one that no one can guess."


def _is_default_password(password: str | None) -> bool:
    words = "admin|backline|change[-_ ]?(it|me)|example|foobared|guest|mysql|password|redis|root|secret|test"
    return re.fullmatch(rf"({words})[-_!.]?\d{{0,4}}[-_!.]?", password or "", re.IGNORECASE) is not None


def _secret_key_rule(config: "Config") -> Iterator[str]:
    key = config.secret_key
    if len(key) < 16:
        yield f"SECRET_KEY is shorter than 16 characters. {NEW_TEXT_KEY}"
    elif _is_guessable(key.encode()) or _is_placeholder(key):
        yield f"SECRET_KEY is easy to guess: it has a pattern, or is an example. {NEW_TEXT_KEY}"


def _token_keys_rule(config: "Config") -> Iterator[str]:
    if any(map(_is_weak_key, config.token_encryption_keys)):
        yield f"TOKEN_ENCRYPTION_KEYS has a key with a pattern, or an example. {NEW_BYTES_KEY}"


def _jwt_keys_rule(config: "Config") -> Iterator[str]:
    if any(map(_is_weak_key, config.jwt_signing_keys)):
        yield f"JWT_SIGNING_KEYS has a key with a pattern, or an example. {NEW_TEXT_KEY}"


def _is_weak_key(key: bytes) -> bool:
    return _is_guessable(key) or _is_placeholder(key.decode("latin-1"))


def _is_guessable(key: bytes) -> bool:
    """Return whether a key follows a pattern: few different bytes, a repeated unit, or steps of one size.

    Random keys do not, in practice.
    """
    steps = Counter((after - before) % 256 for before, after in pairwise(key))
    return (
        len(set(key)) < 6
        or max(steps.values()) > len(key) / 2
        or any(key[unit:] == key[:-unit] for unit in range(1, len(key) // 2 + 1))
    )


def _is_placeholder(secret: str) -> bool:
    """Return whether a secret is an example or a common phrase: `CHANGE-ME-please`, `my-secret-key`."""
    letters = re.sub(r"[^a-z]", "", secret.lower())
    known = (
        r"change(me|this)|replaceme|insert(key|secret)|secretkey|yoursecret|yourkey|encryptionkey|password|"
        r"placeholder|qwertyuiop|djangoinsecure|fortestsonly"
    )
    return re.search(known, letters) is not None


def missing_driver(database_url: str) -> Iterator[str]:
    """Say how to install the driver that a database's URL needs, if it cannot be imported."""
    if not database_url.strip().startswith("mysql"):
        return
    try:
        import MySQLdb  # noqa: F401
    except ModuleNotFoundError:
        yield "DATABASE_URL needs mysqlclient, which is not installed. Run: script/bootstrap --mysql"
    except ImportError as error:  # a library in C that it needs
        reason = " ".join(str(error).split())
        yield f"DATABASE_URL needs mysqlclient, which does not load ({reason}). Run: script/bootstrap --mysql"


# Each rule with the settings that it reads.
_Rules = tuple[tuple[Callable[["Config"], Iterator[str]], set[str]], ...]
_RULES: _Rules = (
    (_cookie_rules, {"SESSION_COOKIE_SAMESITE", "SESSION_COOKIE_SECURE", "SPOTIFY_REDIRECT_URI"}),
    (_redirect_uri_rule, {"SPOTIFY_REDIRECT_URI"}),
    (_jwt_rule, {"JWT_SIGNING_KEYS", "JWT_AUDIENCES"}),
    (_client_credentials_rule, set()),
    (_sign_in_rule, set()),
)
_RULES_OF: dict[str, _Rules] = {
    "development": (),
    "production": (
        (_debug_rule, {"FLASK_DEBUG"}),
        (_spotify_app_rules, set()),
        (_plain_http_rules, set()),
        (_same_site_rule, {"SPOTIFY_REDIRECT_URI", "SESSION_COOKIE_SAMESITE"}),
        (_database_rules, {"DATABASE_URL"}),
        (_redis_rules, {"REDIS_URL"}),
        (_secret_key_rule, {"SECRET_KEY"}),
        (_token_keys_rule, {"TOKEN_ENCRYPTION_KEYS"}),
        (_jwt_keys_rule, {"JWT_SIGNING_KEYS"}),
    ),
}
