"""Settings: read from the environment once, checked as a whole, then frozen.

This is the only module that knows an environment variable's name. `.env.example`
documents every one of them, and a test compares the two.
"""

import base64
import binascii
import io
import ipaddress
import os
import posixpath
import re
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from redis import ConnectionPool, RedisError
from redis.connection import parse_url as parse_redis_url
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ROOT = Path(__file__).resolve().parent

# Everything the Vue example shows, and no more: profile, playback, playlists, top tracks, and the
# Web Playback SDK (`streaming`, which historically also checks the two profile scopes).
DEFAULT_SCOPES = (
    "user-read-private user-read-email streaming "
    "user-read-playback-state user-modify-playback-state user-read-currently-playing "
    "playlist-read-private user-top-read user-read-recently-played"
)

# What `python -m sandbox` answers to unless told otherwise. Public, so worthless anywhere else.
SANDBOX_CLIENT_ID = "5a4db0c0ffee4b0cac1e5a4db0c0ffee"
SANDBOX_CLIENT_SECRET = "sandbox-secret-not-for-production"  # noqa: S105
SANDBOX_URL = "http://127.0.0.1:5001"

AppEnv = Literal["development", "production"]
SameSite = Literal["Lax", "Strict", "None"]

AUTHORIZE_PATH = "/api/spotify/authorize"
# What Sentry and OpenTelemetry add to a page's requests, so that traces reach across the network.
TRACE_HEADERS = ("sentry-trace", "baggage", "traceparent")
# Pages in a native shell and pages of browser extensions have origins with these schemes.
APP_SCHEMES = ("capacitor", "ionic", "tauri", "chrome-extension", "moz-extension")

# What ALLOW_INSECURE may name: production accepts each of these only on purpose.
INSECURE_PARTS = ("mail", "redis", "sqlite")

# Headers that browsers and proxies set, and one that this API does not accept.
_RESERVED_HEADERS = r"authorization|cookie|host|origin|(proxy|sec|x-forwarded)-.*|forwarded|x-real-ip"

_NEW_TEXT_KEY = 'Make one: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
_NEW_BYTES_KEY = 'Make one: python3 -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())"'


class ConfigError(Exception):
    """The settings cannot be used. The message lists everything that is wrong, one line each."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that differs between deployments. Units are in the names."""

    app_env: AppEnv
    secret_key: str = field(repr=False)
    token_encryption_keys: tuple[bytes, ...] = field(repr=False)  # newest first; 32 bytes each
    database_url: str = field(repr=False)
    database_pool_size: int  # connections that a process keeps
    database_max_overflow: int  # connections that it may have beyond those
    redis_url: str = field(repr=False)
    spotify_client_id: str
    spotify_client_secret: str = field(repr=False)
    spotify_redirect_uri: str
    spotify_scopes: tuple[str, ...]
    spotify_accounts_url: str
    spotify_api_url: str
    uses_sandbox: bool
    frontend_url: str
    cors_origins: tuple[str, ...]
    cors_allow_headers: tuple[str, ...]  # request headers that apps may send besides those the API needs
    session_cookie_secure: bool
    session_cookie_samesite: SameSite
    session_idle_seconds: int
    session_max_seconds: int
    trusted_proxies: int
    trusted_hosts: tuple[str, ...]
    allow_insecure: frozenset[str]  # what production tolerates because the operator said so
    refresh_lead_seconds: int
    refresh_active_days: int
    refresh_workers: int
    refresh_rate: int  # calls per second
    gateway_share_seconds: int
    gateway_budget: int | None  # calls to the Web API in any 30 seconds; None: learned from refusals
    playback_token_enabled: bool
    mail_url: str = field(repr=False)  # empty: development prints its mails, production sends none
    mail_from: str
    log_level: str
    log_format: Literal["json", "console"]
    web_concurrency: int
    threads: int
    port: int

    @property
    def refresh_lead(self) -> timedelta:
        """How long before its end a token is refreshed."""
        return timedelta(seconds=self.refresh_lead_seconds)

    @property
    def redirects_to_api(self) -> bool:
        """Whether Spotify sends browsers back to this API, and not to a page of the app."""
        path = urlsplit(self.spotify_redirect_uri).path
        exact = path.endswith(AUTHORIZE_PATH) and not any(part in path for part in ("//", "/./", "/../"))
        return exact and self.spotify_redirect_uri.endswith(path)

    @property
    def is_local(self) -> bool:
        """Whether only browsers on this machine can use the API, which makes plain http safe."""
        return _is_local(self.app_env, self.spotify_redirect_uri, self.trusted_hosts, self.frontend_url)

    @property
    def frontend_origin(self) -> str:
        """The origin of the app's pages, as a browser writes it."""
        return origin_of(self.frontend_url)

    @property
    def session_cookie_name(self) -> str:
        """`__Host-Http-` needs Secure, which browsers refuse on plain http (RFC 6265bis section 4.1.3).

        Cookies do not know ports, so on loopback the name must differ from that of other Flask apps.
        """
        return "__Host-Http-session" if self.session_cookie_secure else "backline_session"

    @property
    def old_session_cookie_name(self) -> str | None:
        """The name before `__Host-Http-`. Still accepted for one release."""
        return "__Host-session" if self.session_cookie_secure else None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Config":
        """Read and check all settings.

        Raises:
            ConfigError: with every problem found, not only the first.
        """
        read = _Reader(environ)
        app_env = cast("AppEnv", read.choice("APP_ENV", _default_env(environ), ("development", "production")))
        production = app_env == "production"
        read.production = production
        port = read.integer("PORT", 5000, least=1, most=65535)
        here = f"http://127.0.0.1:{port}"

        client_id = read.text("SPOTIFY_CLIENT_ID", needed=production)
        client_secret = read.text("SPOTIFY_CLIENT_SECRET", needed=bool(client_id) or production)
        if client_secret and not client_id and not production:
            read.report("SPOTIFY_CLIENT_SECRET", "is set, but SPOTIFY_CLIENT_ID is not. Set both or neither.")
        uses_sandbox = not client_id and not production
        redirect_uri = read.redirect_uri("SPOTIFY_REDIRECT_URI", f"{here}{AUTHORIZE_PATH}")
        frontend_url = read.url("FRONTEND_URL", f"{here}/api/docs", needed=production)
        trusted_hosts = read.host_names("TRUSTED_HOSTS", needed=production)
        is_local = _is_local(app_env, redirect_uri, trusted_hosts, frontend_url)

        config = cls(
            app_env=app_env,
            secret_key=read.secret_key("SECRET_KEY"),
            token_encryption_keys=read.keys("TOKEN_ENCRYPTION_KEYS"),
            database_url=read.database_url("DATABASE_URL", f"sqlite:///{ROOT}/instance/backline.sqlite3"),
            database_pool_size=read.integer("DATABASE_POOL_SIZE", 16, least=1, most=1000),
            database_max_overflow=read.integer("DATABASE_MAX_OVERFLOW", 16, least=0, most=1000),
            redis_url=read.redis_url("REDIS_URL", "redis://127.0.0.1:6379/0"),
            spotify_client_id=read.visible_ascii("SPOTIFY_CLIENT_ID", client_id) or SANDBOX_CLIENT_ID,
            spotify_client_secret=read.visible_ascii("SPOTIFY_CLIENT_SECRET", client_secret)
            or SANDBOX_CLIENT_SECRET,
            spotify_redirect_uri=redirect_uri,
            spotify_scopes=tuple((read.text("SPOTIFY_SCOPES") or DEFAULT_SCOPES).replace(",", " ").split()),
            spotify_accounts_url=read.service_url(
                "SPOTIFY_ACCOUNTS_URL", SANDBOX_URL if uses_sandbox else "https://accounts.spotify.com"
            ),
            spotify_api_url=read.service_url(
                "SPOTIFY_API_URL", f"{SANDBOX_URL}/v1" if uses_sandbox else "https://api.spotify.com/v1"
            ),
            uses_sandbox=uses_sandbox,
            frontend_url=frontend_url,
            cors_origins=read.origins(
                "CORS_ORIGINS",
                [] if production else [origin_of(frontend_url), "http://127.0.0.1:5173"],
                needed=production,
            ),
            cors_allow_headers=read.header_names("CORS_ALLOW_HEADERS"),
            session_cookie_secure=read.boolean("SESSION_COOKIE_SECURE", default=not is_local),
            session_cookie_samesite=cast(
                "SameSite", read.choice("SESSION_COOKIE_SAMESITE", "Lax", ("Lax", "Strict", "None"))
            ),
            session_idle_seconds=read.integer("SESSION_IDLE_SECONDS", 7 * 86_400, least=1),
            session_max_seconds=read.integer("SESSION_MAX_SECONDS", 30 * 86_400, least=1),
            trusted_proxies=read.integer("TRUSTED_PROXIES", 0, least=0, most=5),
            trusted_hosts=trusted_hosts,
            allow_insecure=read.insecure_parts("ALLOW_INSECURE"),
            refresh_lead_seconds=read.integer("REFRESH_LEAD_SECONDS", 900, least=1, most=86_400),
            refresh_active_days=read.integer("REFRESH_ACTIVE_DAYS", 30, least=1),
            refresh_rate=read.integer("REFRESH_RATE", 20, least=1, most=10_000),
            refresh_workers=read.integer("REFRESH_WORKERS", 32, least=1, most=256),
            gateway_share_seconds=read.integer("GATEWAY_SHARE_SECONDS", 1, least=0, most=60),
            gateway_budget=read.integer_or_auto("GATEWAY_BUDGET", least=1, most=1_000_000),
            playback_token_enabled=read.boolean("PLAYBACK_TOKEN_ENABLED", default=not production),
            mail_url=read.mail_url("MAIL_URL"),
            mail_from=read.mail_address("MAIL_FROM", f"no-reply@{urlsplit(frontend_url).hostname}"),
            log_level=read.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
            log_format=cast(
                "Literal['json', 'console']", read.choice("LOG_FORMAT", "json", ("json", "console"))
            ),
            web_concurrency=read.integer("WEB_CONCURRENCY", 2, least=1),
            threads=read.integer("THREADS", 32, least=2),
            port=port,
        )
        read.check_combinations(config)
        if read.problems:
            raise ConfigError("\n".join(read.problems))
        return config


def read_environment() -> dict[str, str]:
    """The process's environment, over what the project's `.env` file says.

    `FLASK_SKIP_DOTENV=1` leaves the file unread, as it does for Flask itself. If other users can read the
    file, the process says so once on standard error.

    Raises:
        ConfigError: there is a `.env`, but it cannot be read.
    """
    if os.environ.get("FLASK_SKIP_DOTENV", "").lower() in ("1", "true", "yes"):
        return dict(os.environ)
    path = ROOT / ".env"
    if not path.exists():
        return dict(os.environ)
    try:
        file = dotenv_values(stream=io.StringIO(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read: it has to be a text file in UTF-8.") from None
    _warn_of_readable_file(path)
    return {name: value for name, value in file.items() if value is not None} | dict(os.environ)


@cache
def _warn_of_readable_file(path: Path) -> None:
    status = path.stat()
    # A file of another owner may be ours to read by its group on purpose.
    is_ours = status.st_uid == os.geteuid()
    if status.st_mode & (stat.S_IRGRP | stat.S_IROTH if is_ours else stat.S_IROTH):
        remedy = f"chmod {'600' if is_ours else 'o-rwx'} {shlex.quote(str(path))}"
        with suppress(OSError):  # a full disk behind it
            sys.stderr.write(f"Other users can read {path}, which holds secrets. Run: {remedy}\n")


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _default_env(environ: Mapping[str, str]) -> AppEnv:
    """Development under `flask ...`, production under any other server: the safe default."""
    return "development" if environ.get("FLASK_RUN_FROM_CLI") == "true" else "production"


def origin_of(url: str) -> str:
    """Return a URL's origin as browsers send it: in lower case, without the scheme's default port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    try:
        port = "" if parts.port in (None, usual) else f":{parts.port}"
    except ValueError:  # beyond 65535
        port = ""
    return f"{parts.scheme}://{host}{port}"


def _is_host(name: str | None) -> bool:
    """Whether a name could be looked up: `mail..example.com` could not."""
    try:
        return bool(name) and bool((name or "").encode("idna"))
    except UnicodeError:
        return False


def may_be_same_site(one: str, other: str) -> bool:
    """Whether a browser may take two URLs for one site: same scheme, and domain names that end alike.

    What counts as a site depends on a list of public suffixes (`co.uk`) that browsers have, so names that
    share two labels pass here.
    """
    first, second = urlsplit(one), urlsplit(other)
    hosts = [url.hostname or "" for url in (first, second)]
    if any(re.fullmatch(r"[0-9.]+|.*:.*", host) for host in hosts):  # an IP address is a site of its own
        return first.scheme == second.scheme and hosts[0] == hosts[1]
    return first.scheme == second.scheme and hosts[0].split(".")[-2:] == hosts[1].split(".")[-2:]


def is_app_origin(origin: str) -> bool:
    """Whether an origin is that of an app in a native shell, or of a browser extension.

    These are on another site than any API, but not all of their requests follow the rules for cookies:
    extensions have permissions for hosts, and shells can send requests outside of the web view.
    """
    parts = urlsplit(origin)
    return parts.scheme in APP_SCHEMES or f".{parts.netloc}".endswith(".localhost")


def host_name(entry: str) -> str:
    """The name in an entry of TRUSTED_HOSTS, without its port."""
    return entry.partition(":")[0]


def _is_local(app_env: AppEnv, redirect_uri: str, trusted_hosts: tuple[str, ...], frontend_url: str) -> bool:
    # A proxy may call us by a loopback name, so TRUSTED_HOSTS alone does not show that visitors are here.
    hosts = [*map(host_name, trusted_hosts), urlsplit(frontend_url).hostname]
    on_loopback = bool(trusted_hosts) and all(map(_is_this_machine, hosts))
    return urlsplit(redirect_uri).scheme == "http" and (on_loopback or app_env == "development")


def _is_this_machine(host: str | None) -> bool:
    """Whether a browser looks for a host on its own machine. Names under `.localhost` never leave it."""
    return is_loopback(host) or (host or "").endswith(".localhost")


def _is_guessable(key: bytes) -> bool:
    """Whether a key follows a pattern: few different bytes, a repeated unit, or steps of one size.

    Random keys do not, in practice.
    """
    steps = Counter((after - before) % 256 for before, after in pairwise(key))
    return (
        len(set(key)) < 6
        or max(steps.values()) > len(key) / 2
        or any(key[unit:] == key[:-unit] for unit in range(1, len(key) // 2 + 1))
    )


def _is_placeholder(secret: str) -> bool:
    """Whether a secret is an example or a common phrase: `CHANGE-ME-please`, `my-secret-key`."""
    letters = re.sub(r"[^a-z]", "", secret.lower())
    known = (
        r"change(me|this)|replaceme|insert(key|secret)|secretkey|yoursecret|yourkey|encryptionkey|password|"
        r"placeholder|qwertyuiop|djangoinsecure|fortestsonly"
    )
    return re.search(known, letters) is not None


# --- Rules about several settings. Each yields messages that begin with the name of a setting. --------


def _cookie_rules(config: Config) -> Iterator[str]:
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


def _redirect_uri_rule(config: Config) -> Iterator[str]:
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


def _client_id_rule(config: Config) -> Iterator[str]:
    if config.spotify_client_id == SANDBOX_CLIENT_ID:
        yield "SPOTIFY_CLIENT_ID is the sandbox's. Use your own application's, from Spotify's dashboard."


def _plain_http_rules(config: Config) -> Iterator[str]:
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


def _is_unsafe_http(config: Config, url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not (config.is_local and _is_this_machine(parts.hostname))


def _is_shell_page(origin: str) -> bool:
    """Whether an origin is one that Tauri serves an app's pages from, such as http://tauri.localhost."""
    return urlsplit(origin).netloc.endswith(".localhost")


def _same_site_rule(config: Config) -> Iterator[str]:
    """Only a redirect URI that leads to the API shows for certain where browsers reach the API."""
    is_wrong_already = config.spotify_redirect_uri.lower().startswith("http:") and not config.is_local
    if config.session_cookie_samesite == "None" or not config.redirects_to_api or is_wrong_already:
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


def _database_rule(config: Config) -> Iterator[str]:
    if make_url(config.database_url).get_backend_name() == "sqlite" and "sqlite" not in config.allow_insecure:
        yield (
            "DATABASE_URL is SQLite, which is for development. Use mysql+mysqldb://..., or accept it with "
            "ALLOW_INSECURE=sqlite."
        )


def _redis_rule(config: Config) -> Iterator[str]:
    if is_exposed_redis(config.redis_url) and "redis" not in config.allow_insecure:
        yield (
            "REDIS_URL reaches another machine without a password or TLS, so anyone on that network could "
            "read and change sessions. Use redis://:password@... or rediss://..., or accept it with "
            "ALLOW_INSECURE=redis."
        )


def is_exposed_redis(url: str) -> bool:
    """Whether Redis is on another machine, with neither a password nor a verified TLS connection."""
    parsed = parse_redis_url(url)  # type: ignore[no-untyped-call]
    checks_certificate = parsed.get("ssl_cert_reqs") != "none" and parsed.get("ssl_check_hostname", True)
    verified = url.startswith("rediss:") and checks_certificate
    return not (verified or parsed.get("password") or parsed.get("path") or is_loopback(parsed.get("host")))


def _secret_key_rule(config: Config) -> Iterator[str]:
    if _is_guessable(config.secret_key.encode(errors="surrogateescape")) or _is_placeholder(
        config.secret_key
    ):
        yield f"SECRET_KEY is easy to guess: it has a pattern, or is an example. {_NEW_TEXT_KEY}"


def _token_keys_rule(config: Config) -> Iterator[str]:
    keys = config.token_encryption_keys
    if any(_is_guessable(key) or _is_placeholder(key.decode("latin-1")) for key in keys):
        yield f"TOKEN_ENCRYPTION_KEYS has a key with a pattern, or an example. {_NEW_BYTES_KEY}"


# Each rule with the settings it reads. It does not apply while one of them is invalid by itself.
_Rules = tuple[tuple[Callable[[Config], Iterator[str]], set[str]], ...]
_RULES: _Rules = (
    (_cookie_rules, {"SESSION_COOKIE_SAMESITE", "SESSION_COOKIE_SECURE", "SPOTIFY_REDIRECT_URI"}),
    (_redirect_uri_rule, {"SPOTIFY_REDIRECT_URI"}),
)
_PRODUCTION_RULES: _Rules = (
    (_client_id_rule, set()),
    (_plain_http_rules, set()),
    (_same_site_rule, {"SPOTIFY_REDIRECT_URI", "SESSION_COOKIE_SAMESITE"}),
    (_database_rule, {"DATABASE_URL"}),
    (_redis_rule, {"REDIS_URL"}),
    (_secret_key_rule, {"SECRET_KEY"}),
    (_token_keys_rule, {"TOKEN_ENCRYPTION_KEYS"}),
)


class _Reader:
    """Reads one variable at a time and collects what is wrong. An empty value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.production = True
        self.problems: list[str] = []
        self._invalid: set[str] = set()

    def report(self, name: str, problem: str) -> None:
        self._invalid.add(name)
        self.problems.append(f"{name} {problem}")

    def check_combinations(self, config: Config) -> None:
        """Apply the rules about several settings. A setting that is already reported is left alone."""
        invalid = self._invalid
        for rule, settings in (*_RULES, *(_PRODUCTION_RULES if self.production else ())):
            if invalid.isdisjoint(settings):
                self.problems += [line for line in rule(config) if re.split("[ :=]", line)[0] not in invalid]

    def text(self, name: str, default: str = "", *, needed: bool = False) -> str:
        value = self._environ.get(name, "").strip()
        if not value and needed:
            self.report(name, "is not set. See .env.example.")
        return value or default

    def visible_ascii(self, name: str, value: str) -> str:
        """A credential for HTTP's Basic scheme; a pasted typographic quote would fail there much later."""
        if not re.fullmatch(r"[!-~]*", value):
            self.report(name, "has characters that no Spotify credential has.")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in self.text(name).split(",") if word.strip())

    def host_names(self, name: str, *, needed: bool) -> tuple[str, ...]:
        """Names of this API. A leading dot stands for all names below a domain."""
        found = tuple(host.lower() for host in self.words(name))  # as browsers send them
        if needed and not found:
            self.report(name, "is not set. List the host names of this API, such as api.example.com.")
        for host in found:
            # ".com" would stand for half of the world. Werkzeug cannot compare IPv6 addresses.
            label = "[a-z0-9-]+"
            if not re.fullmatch(rf"({label}(\.{label})*|\.{label}(\.{label})+)(:\d{{1,5}})?", host):
                self.report(
                    name,
                    f"has {host!r}, which is not a host name such as api.example.com. "
                    "Use names (or IPv4 addresses), without https:// and wildcards.",
                )
        return found

    def header_names(self, name: str) -> tuple[str, ...]:
        """Names of request headers, in addition to those for traces."""
        found = self.words(name)
        for header in found:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", header):
                self.report(name, f"has {header!r}, which is not the name of a header. List exact names.")
            elif re.fullmatch(_RESERVED_HEADERS, header, re.IGNORECASE):
                self.report(name, f"has {header}, which apps must not set. Remove it.")
        return tuple(dict.fromkeys((*TRACE_HEADERS, *found)))

    def insecure_parts(self, name: str) -> frozenset[str]:
        """The parts of a deployment that may be insecure. A word that means nothing is a mistake."""
        found = frozenset(word.lower() for word in self.words(name))
        if not found <= set(INSECURE_PARTS):
            self.report(name, f"accepts these words only: {', '.join(INSECURE_PARTS)}.")
        return found

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name, default)
        match = next((choice for choice in allowed if choice.lower() == value.lower()), None)
        if match is None:
            self.report(name, f"must be one of {', '.join(allowed)}.")
        return match or default

    def integer(self, name: str, default: int, *, least: int, most: int = 2**31 - 1) -> int:
        value = self.text(name, str(default))
        if not re.fullmatch(r"\d{1,10}", value, re.ASCII) or not least <= int(value) <= most:
            self.report(name, f"must be a whole number from {least} to {most}.")
            return default
        return int(value)

    def integer_or_auto(self, name: str, *, least: int, most: int) -> int | None:
        """A number, or None for `auto`, which is the default."""
        value = self.text(name, "auto")
        if value.lower() == "auto":
            return None
        if not re.fullmatch(r"\d{1,10}", value, re.ASCII) or not least <= int(value) <= most:
            self.report(name, f"must be auto or a whole number from {least} to {most}.")
            return None
        return int(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.text(name, str(default)).lower()
        if value not in ("true", "false", "1", "0", "yes", "no"):
            self.report(name, "must be true or false.")
        return value in ("true", "1", "yes")

    def secret_key(self, name: str) -> str:
        value = self.text(name)
        if not value or (self.production and len(value) < 16):
            self.report(name, f"is not set, or shorter than 16 characters. {_NEW_TEXT_KEY}")
        return value

    def keys(self, name: str) -> tuple[bytes, ...]:
        """32-byte keys in base64 (either alphabet, padded or not) or in hexadecimal."""
        words = self.words(name)
        keys = tuple(key for word in words if (key := _decode_key(word)) is not None)
        if not words or len(keys) != len(words):
            self.report(
                name,
                "must be one or more keys of 32 bytes in base64, newest first, comma separated. "
                f"{_NEW_BYTES_KEY}",
            )
        return keys

    def database_url(self, name: str, default: str) -> str:
        value = self.text(name, default, needed=self.production)
        try:
            url = make_url(value)
            good = url.drivername in ("mysql+mysqldb", "sqlite", "sqlite+pysqlite")
            # A database in memory would be another one for every connection.
            good = good and url.database not in (None, "", ":memory:")
            url.get_dialect()().create_connect_args(url)  # reads the parameters
        except (ArgumentError, ValueError):  # a number that is none is a plain ValueError
            good = False
        if not good:
            self.report(
                name,
                "must look like mysql+mysqldb://user:password@host/database?charset=utf8mb4 "
                "or sqlite:////absolute/path. Numbers among its parameters must be numbers.",
            )
        return value

    def redis_url(self, name: str, default: str) -> str:
        value = self.text(name, default, needed=self.production)
        try:
            parsed = parse_redis_url(value)  # type: ignore[no-untyped-call]
            good = _is_host(parsed.get("host")) or bool(parsed.get("path"))
            ConnectionPool.from_url(value).make_connection()  # reads the parameters; connects to nothing
        except (ValueError, TypeError, RedisError):
            good = False
        if not good:
            self.report(
                name,
                "must look like redis://host:6379/0, rediss://... or unix:///path, with no parameters that "
                "redis-py does not know.",
            )
        return value

    def url(self, name: str, default: str, *, needed: bool = False) -> str:
        value = self.text(name, default, needed=needed)
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # an unclosed bracket, a port that is no number
            good = False
        if not good or "@" in parts.netloc or "#" in value or not re.fullmatch(r"[!-[\]-~]+", value):
            self.report(
                name,
                "must be an http(s) URL without a fragment, credentials, or spaces, and with xn-- for a "
                "domain that is not ASCII.",
            )
            return default
        return value

    def service_url(self, name: str, default: str) -> str:
        """A Spotify host. Tokens and the client secret travel there, so plain http is for loopback only."""
        value = self.url(name, default).rstrip("/")
        parts = urlsplit(value)
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            self.report(name, "must be https (http is accepted on loopback only).")
        if parts.query:
            self.report(name, "must not have a query.")
        return value

    def redirect_uri(self, name: str, default: str) -> str:
        """Spotify's own rule: https, or http with a loopback IP literal; never `localhost`.

        Source: https://developer.spotify.com/documentation/web-api/concepts/redirect_uri
        """
        value = self.url(name, default, needed=self.production)
        parts = urlsplit(value)
        if parts.hostname == "localhost" or (parts.scheme == "http" and not is_loopback(parts.hostname)):
            self.report(
                name,
                "must be https, or http with the loopback address 127.0.0.1 or [::1]: "
                "Spotify refuses anything else, localhost included.",
            )
        return value

    def mail_url(self, name: str) -> str:
        """smtp:// (STARTTLS where the server offers it) or smtps:// (TLS from the first byte)."""
        value = self.text(name)
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("smtp", "smtps") and _is_host(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if value and (not good or parts.path.strip("/") or parts.query or parts.fragment):
            self.report(
                name,
                "must look like smtp://user:password@mail.example.com:587, with special characters "
                "of the password percent-encoded (# is %23).",
            )
        return value

    def mail_address(self, name: str, default: str) -> str:
        value = self.text(name, default)
        if not re.fullmatch(r"[!-~]+@[!-~]+", value) or set(value) & set('<>,;"'):
            self.report(name, "must be a plain e-mail address, such as no-reply@example.com.")
        return value

    def origins(self, name: str, default: list[str], *, needed: bool = False) -> tuple[str, ...]:
        """Exact origins. A wildcard with credentials would let any page read every response."""
        found = self.words(name) or tuple(dict.fromkeys(default))
        if needed and not found:  # also if there is nothing but commas
            self.report(name, "is not set. See .env.example.")
        schemes = "|".join(("https?", *APP_SCHEMES))
        for origin in found:
            shape = re.fullmatch(rf"(?:{schemes})://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{{1,5}})?", origin)
            if not shape or origin != origin_of(origin):
                self.report(
                    name,
                    f"has {origin!r}, which is not an exact origin such as https://app.example.com or "
                    "capacitor://localhost (lower case, no default port, no path, no slash at the end, no "
                    f"wildcard; http, https, {', '.join(APP_SCHEMES)}).",
                )
        return found


def _decode_key(word: str) -> bytes | None:
    if re.fullmatch(r"[0-9a-fA-F]{64}", word):
        return bytes.fromhex(word)
    try:
        key = base64.b64decode(
            word.replace("-", "+").replace("_", "/").rstrip("=") + "=" * (-len(word.rstrip("=")) % 4),
            validate=True,
        )
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None
