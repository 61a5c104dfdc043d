"""Settings: read from the environment once, validated as a whole, then frozen.

This is the only module that reads environment variables. `.env.example` documents all of them, and a test
compares the two.
"""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from app.settings import dotenv, rules
from app.settings.rules import AUTHORIZE_PATH, CREDENTIALS, SANDBOX_CLIENT_ID, SANDBOX_CLIENT_SECRET
from app.settings.start import unwritable_log
from app.settings.types import (
    DEFAULT_OPTIONAL_SCOPES,
    DEFAULT_SCOPES,
    NEW_BYTES_KEY,
    NEW_TEXT_KEY,
    TRACE_HEADERS,
    Bool,
    Budget,
    Credential,
    DatabaseUrl,
    HeaderNames,
    HostNames,
    HttpUrl,
    InsecureParts,
    Keys,
    MailAddress,
    MailUrl,
    Origins,
    RedirectUri,
    RedisUrl,
    Required,
    Scopes,
    ServiceUrl,
    Text,
    Words,
    whole_number,
)
from app.settings.urls import host_name, is_browsers_machine, origin_of

ROOT = Path(__file__).resolve().parent
_SQLITE_URL = f"sqlite:///{ROOT}/instance/backline.sqlite3"

SANDBOX_URL = "http://127.0.0.1:5001"

MAX_INT = 2**31 - 1

AppEnv = Literal["development", "production"]
SameSite = Literal["Lax", "Strict", "None"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["json", "console"]


class ConfigError(Exception):
    """The settings cannot be used. The message lists everything that is wrong, one line each."""


def _default(make: Callable[[dict[str, Any]], Any], **options: Any) -> Any:
    """Declare a field whose default depends on the fields above it."""
    return Field(default_factory=make, **options)


class Config(BaseModel):
    """Everything that differs between deployments. Units are in the names."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    app_env: Annotated[AppEnv, BeforeValidator(str.lower)] = "production"
    uses_sandbox: bool = False  # set by `from_env`
    port: Annotated[int, whole_number(1, 65535)] = 5000
    web_concurrency: Annotated[int, whole_number(1, MAX_INT)] = 2
    threads: Annotated[int, whole_number(2, MAX_INT)] = 32
    log_level: Annotated[LogLevel, BeforeValidator(str.upper)] = "INFO"
    log_format: Annotated[LogFormat, BeforeValidator(str.lower)] = "json"
    flask_debug: Bool = False  # Flask reads it too

    secret_key: Annotated[Text, Required(NEW_TEXT_KEY, in_development=True)] = Field("", repr=False)
    # Newest first, 32 bytes each.
    token_encryption_keys: Annotated[Keys, Required(NEW_BYTES_KEY, in_development=True)] = Field(
        (), repr=False
    )
    database_url: Annotated[DatabaseUrl, Required()] = Field(_SQLITE_URL, repr=False)
    # Connections that each process keeps, and how many more it may open.
    database_pool_size: Annotated[int, whole_number(1, 1000)] = 16
    database_max_overflow: Annotated[int, whole_number(0, 1000)] = 16
    redis_url: Annotated[RedisUrl, Required()] = Field("redis://127.0.0.1:6379/0", repr=False)

    spotify_client_id: Annotated[Credential, Required()] = SANDBOX_CLIENT_ID
    spotify_client_secret: Annotated[Credential, Required()] = Field(SANDBOX_CLIENT_SECRET, repr=False)
    # Whose application people connect with: the one above, their own, or either.
    spotify_apps: Annotated[Literal["deployment", "own", "both"], BeforeValidator(str.lower)] = "deployment"
    spotify_redirect_uri: Annotated[RedirectUri, Required()] = _default(
        lambda known: f"http://127.0.0.1:{known['port']}{AUTHORIZE_PATH}"
    )
    spotify_scopes: Scopes = tuple(DEFAULT_SCOPES.split())
    # Requested only when the app asks for them, in addition to `spotify_scopes`.
    spotify_optional_scopes: Scopes = tuple(DEFAULT_OPTIONAL_SCOPES.split())
    spotify_sign_in: Bool = False
    spotify_accounts_url: ServiceUrl = _default(
        lambda known: SANDBOX_URL if known["uses_sandbox"] else "https://accounts.spotify.com"
    )
    spotify_api_url: ServiceUrl = _default(
        lambda known: f"{SANDBOX_URL}/v1" if known["uses_sandbox"] else "https://api.spotify.com/v1"
    )
    refresh_lead_seconds: Annotated[int, whole_number(1, 86_400)] = 900
    refresh_active_days: Annotated[int, whole_number(1, MAX_INT)] = 30
    refresh_rate: Annotated[int, whole_number(1, 10_000)] = 20  # calls per second
    refresh_workers: Annotated[int, whole_number(1, 256)] = 32
    gateway_share_seconds: Annotated[int, whole_number(0, 60)] = 1
    # Calls to the Web API in any 30 seconds. None: learned from 429 responses.
    gateway_budget: Budget = None
    playback_token_enabled: Bool = _default(lambda known: known["app_env"] == "development")

    frontend_url: Annotated[HttpUrl, Required()] = _default(
        lambda known: f"http://127.0.0.1:{known['port']}/api/docs"
    )
    trusted_hosts: Annotated[
        HostNames, Required("List the host names of this API, such as api.example.com.")
    ] = ()
    trusted_proxies: Annotated[int, whole_number(0, 5)] = 0
    cors_origins: Annotated[Origins, Required()] = _default(
        lambda known: tuple(dict.fromkeys((origin_of(known["frontend_url"]), "http://127.0.0.1:5173")))
    )
    # Request headers that apps may send in addition to those that the API needs.
    cors_allow_headers: HeaderNames = TRACE_HEADERS
    session_cookie_secure: Bool = _default(lambda known: not _is_local(known))
    session_cookie_samesite: Annotated[SameSite, BeforeValidator(str.capitalize)] = "Lax"
    session_idle_seconds: Annotated[int, whole_number(1, MAX_INT)] = 7 * 86_400
    session_max_seconds: Annotated[int, whole_number(1, MAX_INT)] = 30 * 86_400

    # Ed25519 private keys, newest first, and the services that JWTs are for. Without them, there are no JWTs.
    jwt_signing_keys: Keys = Field((), repr=False)
    jwt_audiences: Words = ()

    mail_url: MailUrl = Field("", repr=False)  # empty: development prints emails, production sends none
    mail_from: MailAddress = _default(lambda known: f"no-reply@{urlsplit(known['frontend_url']).hostname}")
    allow_insecure: InsecureParts = frozenset()  # what the operator accepts in production on purpose

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Config":
        """Read and validate all settings. Empty values count as unset.

        Raises:
            ConfigError: Settings are missing or invalid. Lists all of them, not only the first.
        """
        problems: dict[str, str] = {}
        config = cls.model_validate(_read(environ), context=problems)
        if "app_env" in problems:  # look for other problems in the default environment
            config = cls.model_validate(_read({**environ, "APP_ENV": ""}), context=problems)
        problems |= _missing(config)
        lines = [
            f"{name.upper()} {line}"
            for name in cls.model_fields
            if name in problems
            for line in problems[name].split("\n")
        ]
        lines += rules.problems_of(config, {name.upper() for name in problems})
        if lines:
            raise ConfigError("\n".join(lines))
        return config

    @field_validator("*", mode="wrap")
    @classmethod
    def _collect_problem(cls, value: Any, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Note what is wrong with a setting, and continue with its default to find other problems."""
        name = info.field_name or ""
        try:
            return parse(value)
        except ValidationError as error:
            if info.context is None:
                raise
            [first, *_] = error.errors(include_url=False, include_input=False)
            ours = first.get("ctx", {}).get("error")
            info.context[name] = str(ours or f"{first['msg'].replace('Input should', 'must')}.")
            return cls.model_fields[name].get_default(call_default_factory=True, validated_data=info.data)

    @property
    def refresh_lead(self) -> timedelta:
        """How long before its end a token is refreshed."""
        return timedelta(seconds=self.refresh_lead_seconds)

    @property
    def redirects_to_api(self) -> bool:
        """Whether Spotify redirects browsers to this API, and not to a page of the app."""
        path = urlsplit(self.spotify_redirect_uri).path
        exact = path.endswith(AUTHORIZE_PATH) and not any(part in path for part in ("//", "/./", "/../"))
        return exact and self.spotify_redirect_uri.endswith(path)

    @property
    def is_local(self) -> bool:
        """Whether only browsers on this machine can use the API, which makes plain http safe."""
        return _is_local(vars(self))

    @property
    def frontend_origin(self) -> str:
        """The origin of the app's pages, as browsers send it."""
        return origin_of(self.frontend_url)

    @property
    def session_cookie_name(self) -> str:
        """The name of the session cookie.

        `__Host-Http-` requires Secure, which browsers reject on plain http (RFC 6265bis section 4.1.3).
        Cookies are not separated by port, so on loopback the name must differ from other Flask apps'.
        """
        return "__Host-Http-session" if self.session_cookie_secure else "backline_session"

    @property
    def old_session_cookie_name(self) -> str | None:
        """The name before `__Host-Http-`. Still accepted for one release."""
        return "__Host-session" if self.session_cookie_secure else None


def _read(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in an environment that are not empty, by the names of their fields."""
    values: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if name == "uses_sandbox":
            continue
        text = environ.get(name.upper(), "").strip()
        is_list = get_origin(field.annotation) in (tuple, frozenset)
        if text.strip(", ") if is_list else text:
            values[name] = text
    # Development under `flask ...`, and production under any other server, which is the safe default.
    is_flask_command = environ.get("FLASK_RUN_FROM_CLI") == "true"
    app_env = values.setdefault("app_env", "development" if is_flask_command else "production")
    values["uses_sandbox"] = app_env.lower() == "development" and "spotify_client_id" not in values
    return values


def _missing(config: Config) -> dict[str, str]:
    """Return a problem for each setting that is required and was not set."""
    return {
        name: f"is not set. {mark.hint}"
        for name, field in Config.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Required) and (mark.in_development or config.app_env == "production")
        if name not in config.model_fields_set and not (config.spotify_apps == "own" and name in CREDENTIALS)
    }


def _is_local(settings: Mapping[str, Any]) -> bool:
    # A proxy may use a loopback name for the API, so TRUSTED_HOSTS alone does not show where visitors are.
    hosts = [*map(host_name, settings["trusted_hosts"]), urlsplit(settings["frontend_url"]).hostname]
    on_loopback = bool(settings["trusted_hosts"]) and all(map(is_browsers_machine, hosts))
    is_http = urlsplit(settings["spotify_redirect_uri"]).scheme == "http"
    return is_http and (on_loopback or settings["app_env"] == "development")


def load() -> Config:
    """Read the settings of this process.

    Raises:
        ConfigError: Settings are missing or invalid, or this machine lacks what they need. Lists all of it.
    """
    environ = read_environment()
    problems = [*unwritable_log(), *rules.missing_driver(environ.get("DATABASE_URL", ""))]
    try:
        config = Config.from_env(environ)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def read_environment() -> dict[str, str]:
    """Return the process's environment, together with the project's `.env` file, which it overrides.

    As with Flask itself, `FLASK_SKIP_DOTENV=1` skips the file. If other users can read the file, the process
    warns about it once, on standard error.

    Raises:
        ConfigError: There is a `.env`, but it cannot be read.
    """
    path = ROOT / ".env"
    is_skipped = os.environ.get("FLASK_SKIP_DOTENV", "").lower() in ("1", "true", "yes")
    if is_skipped or not path.exists():
        return dict(os.environ)
    try:
        return dotenv.read(path) | dict(os.environ)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read: it has to be a text file in UTF-8.") from None
