"""Settings: complete, checked as a whole, and never shown."""

import base64
import itertools
import re
from pathlib import Path

import pytest

from app.settings.database_url import parse_database_url
from app.settings.rules import AUTHORIZE_PATH
from config import Config, ConfigError, read_environment

KEY = "7wXoTzJ1mRk3vGd9PqYcB5sLhUeN0aZfWi2tKxQ8ypM="
KEY_BYTES = base64.b64decode(KEY)
DEVELOPMENT = {"APP_ENV": "development", "SECRET_KEY": "secret-hunter2", "TOKEN_ENCRYPTION_KEYS": KEY}
PRODUCTION = {
    "SECRET_KEY": "secret-hunter2-and-more",
    "TOKEN_ENCRYPTION_KEYS": KEY,
    "DATABASE_URL": "mysql+mysqldb://backline:hunter2@db/backline?charset=utf8mb4",
    "REDIS_URL": "redis://:hunter2@cache/0",
    "SPOTIFY_CLIENT_ID": "0123456789abcdef0123456789abcdef",
    "SPOTIFY_CLIENT_SECRET": "hunter2",
    "SPOTIFY_REDIRECT_URI": "https://api.example.com/api/spotify/authorize",
    "FRONTEND_URL": "https://app.example.com/",
    "CORS_ORIGINS": "https://app.example.com",
    "TRUSTED_HOSTS": "api.example.com",
}
# With the redirect URI at a page of the app, and a cookie for other sites.
CROSS_SITE = {
    **PRODUCTION,
    "SPOTIFY_REDIRECT_URI": "https://app.example.org/callback",
    "CORS_ORIGINS": "https://app.example.org",
    "FRONTEND_URL": "https://app.example.org/",
    "SESSION_COOKIE_SAMESITE": "None",
}


def problems_of(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as raised:
        Config.from_env(environ)
    return str(raised.value)


def test_development_needs_only_two_secrets() -> None:
    config = Config.from_env(DEVELOPMENT)

    assert config.uses_sandbox
    assert config.spotify_accounts_url == "http://127.0.0.1:5001"
    assert config.spotify_redirect_uri == "http://127.0.0.1:5000/api/spotify/authorize"
    assert config.database_url.startswith("sqlite:////")
    assert config.session_cookie_name == "backline_session"
    assert "http://127.0.0.1:5173" in config.cors_origins


def test_port_determines_the_urls_that_depend_on_it() -> None:
    config = Config.from_env({**DEVELOPMENT, "PORT": "5050"})

    assert config.spotify_redirect_uri == "http://127.0.0.1:5050/api/spotify/authorize"
    assert config.frontend_url == "http://127.0.0.1:5050/api/docs"


def test_real_client_id_selects_the_real_spotify() -> None:
    config = Config.from_env({**DEVELOPMENT, "SPOTIFY_CLIENT_ID": "abc", "SPOTIFY_CLIENT_SECRET": "x"})

    assert not config.uses_sandbox
    assert config.spotify_accounts_url == "https://accounts.spotify.com"
    assert config.spotify_api_url == "https://api.spotify.com/v1"


def test_client_secret_without_an_id_is_reported() -> None:
    assert "SPOTIFY_CLIENT_ID" in problems_of({**DEVELOPMENT, "SPOTIFY_CLIENT_SECRET": "x"})


def test_jwt_settings_are_set_together() -> None:
    both = {"JWT_SIGNING_KEYS": KEY, "JWT_AUDIENCES": "https://stats.example.com,push"}
    config = Config.from_env({**PRODUCTION, **both})

    assert config.jwt_signing_keys == (KEY_BYTES,)
    assert config.jwt_audiences == ("https://stats.example.com", "push")
    for environ, (name, missing) in itertools.product(
        (DEVELOPMENT, PRODUCTION), itertools.permutations(both)
    ):
        assert problems_of({**environ, name: both[name]}).startswith(f"{missing} is not set")
    weak = {**both, "JWT_SIGNING_KEYS": f"{KEY},{text_key(bytes(32))}"}
    assert "JWT_SIGNING_KEYS has a key with a pattern" in problems_of({**PRODUCTION, **weak})


def test_dotenv_file_in_another_encoding_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.ROOT", tmp_path)
    monkeypatch.delenv("FLASK_SKIP_DOTENV", raising=False)
    (tmp_path / ".env").write_text("PORT=5055\n", encoding="utf-8-sig")
    assert read_environment()["PORT"] == "5055"

    (tmp_path / ".env").write_text("PORT=5055\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        read_environment()


@pytest.mark.parametrize(
    ("mode", "ours", "said"),
    [
        *((0o644, True, "chmod 600"), (0o640, True, "chmod 600"), (0o604, True, "chmod 600")),
        *((0o600, True, ""), (0o644, False, "chmod o-rwx"), (0o640, False, "")),
    ],
)
def test_dotenv_file_that_others_can_read_is_reported_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: int,
    ours: bool,
    said: str,
) -> None:
    monkeypatch.setattr("config.ROOT", tmp_path)
    monkeypatch.delenv("FLASK_SKIP_DOTENV", raising=False)
    (tmp_path / ".env").touch(mode=0o600)
    (tmp_path / ".env").chmod(mode)
    if not ours:
        monkeypatch.setattr("os.geteuid", lambda: 4711)

    read_environment()
    read_environment()

    output = capsys.readouterr().err
    assert output.count("Other users can read") == bool(said)
    assert f"{said} {tmp_path}/.env" in output or not said


def test_production_is_the_default_except_under_the_flask_command() -> None:
    assert Config.from_env(PRODUCTION).app_env == "production"
    assert (
        Config.from_env({**DEVELOPMENT, "APP_ENV": "", "FLASK_RUN_FROM_CLI": "true"}).app_env == "development"
    )


def test_production_is_secure_by_default() -> None:
    config = Config.from_env(PRODUCTION)

    assert config.session_cookie_name == "__Host-Http-session"
    assert config.cors_origins == ("https://app.example.com",)


def test_deployment_needs_no_application_if_everyone_brings_their_own() -> None:
    without = {name: value for name, value in PRODUCTION.items() if not name.startswith("SPOTIFY_CLIENT_")}

    own = {**without, "SPOTIFY_APPS": "Own"}
    assert Config.from_env(own).spotify_apps == "own"
    assert "SPOTIFY_CLIENT_ID is not set, but SPOTIFY_SIGN_IN is" in problems_of(
        {**own, "SPOTIFY_SIGN_IN": "true"}
    )
    assert "SPOTIFY_CLIENT_ID is not set" in problems_of({**without, "SPOTIFY_APPS": "both"})
    half = {**without, "SPOTIFY_APPS": "own", "SPOTIFY_CLIENT_ID": PRODUCTION["SPOTIFY_CLIENT_ID"]}
    assert "SPOTIFY_CLIENT_SECRET is not set, but SPOTIFY_CLIENT_ID is" in problems_of(half)


def test_playback_tokens_are_off_in_production_by_default() -> None:
    assert not Config.from_env(PRODUCTION).playback_token_enabled
    assert Config.from_env({**PRODUCTION, "PLAYBACK_TOKEN_ENABLED": "true"}).playback_token_enabled
    assert Config.from_env(DEVELOPMENT).playback_token_enabled


@pytest.mark.requirement("M5")
def test_production_with_defaults_reports_every_problem_at_once() -> None:
    message = problems_of({"APP_ENV": "production"})

    for name in PRODUCTION:
        assert name in message, name
    assert len(message.splitlines()) == len(PRODUCTION)


@pytest.mark.parametrize("missing", sorted(PRODUCTION))
def test_production_requires_each_of_its_settings(missing: str) -> None:
    assert missing in problems_of({name: value for name, value in PRODUCTION.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_ENV", "staging"),
        ("SECRET_KEY", "short"),
        ("TOKEN_ENCRYPTION_KEYS", "not a key"),
        ("TOKEN_ENCRYPTION_KEYS", base64.b64encode(bytes(31)).decode()),
        ("TOKEN_ENCRYPTION_KEYS", f"{KEY},oops"),
        ("JWT_SIGNING_KEYS", "not a key"),
        ("JWT_SIGNING_KEYS", f"{KEY},{KEY[:-4]}"),
        ("DATABASE_URL", "postgresql://db/x"),
        ("DATABASE_URL", "mysql://db/x"),
        ("DATABASE_URL", "nonsense"),
        ("REDIS_URL", "http://cache"),
        ("SPOTIFY_REDIRECT_URI", "http://api.example.com/x"),
        ("SPOTIFY_REDIRECT_URI", "http://localhost:5000/x"),
        ("SPOTIFY_REDIRECT_URI", "ftp://api.example.com/x"),
        ("SPOTIFY_REDIRECT_URI", "https://api.example.com/x#fragment"),
        ("SPOTIFY_ACCOUNTS_URL", "http://accounts.example.com"),
        ("SPOTIFY_API_URL", "http://[oops"),
        ("SPOTIFY_API_URL", "http://127.0.0.1:port"),
        ("FRONTEND_URL", "/relative"),
        ("FRONTEND_URL", "https://app..example.com"),
        ("SECRET_KEY", "\udcff" * 20),
        ("MAIL_URL", "http://mail.example.com"),
        ("MAIL_URL", "smtp://"),
        ("MAIL_URL", "smtp://u:hunter2@mail.example.com:port"),
        ("MAIL_URL", "smtp://mail.example.com/inbox"),
        ("MAIL_FROM", "Backline <no-reply@example.com>"),
        ("MAIL_FROM", "nobody"),
        ("MAIL_URL", "smtp://mail..example.com"),
        ("MAIL_URL", "smtp://user:12#34hunter2@mail.example.com:587"),
        ("MAIL_URL", "smtp://user:pa?hunter2@mail.example.com:587"),
        ("REDIS_URL", "redis://re..dis:6379/0"),
        ("TRUSTED_HOSTS", "https://api.example.com"),
        ("TRUSTED_HOSTS", "api.example.com/"),
        ("TRUSTED_HOSTS", "[2001:db8::1]:443"),
        ("TRUSTED_HOSTS", "*.example.com"),
        ("SESSION_COOKIE_SECURE", "maybe"),
        ("SESSION_COOKIE_SAMESITE", "Loose"),
        ("SESSION_IDLE_SECONDS", "0"),
        ("SESSION_IDLE_SECONDS", "-5"),
        ("SESSION_MAX_SECONDS", "0"),
        ("SPOTIFY_CLIENT_SECRET", "pasted\u2019quote"),
        ("SPOTIFY_CLIENT_ID", "two words"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h:port/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h:0/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1,/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1:3306,h2:65536/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1,::1/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1;h2/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1,[h2]/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1,h2,H1:3306/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h/db/x"),
        ("DATABASE_URL", "mysql+mysqldb://u:@hunter2,x@h/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h1,h2/db?unix_socket=/x"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h/db?ssl_caa=/x"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2\udcff@h/db"),
        ("REDIS_URL", "redis:"),
        ("REDIS_URL", "redis://:hunter2@cache/0?nonsense=1"),
        ("REDIS_URL", "redis://:hunter2@cache/0?path=/x"),
        ("REDIS_URL", "rediss://cache/0?ssl_cert_reqs=NONE"),
        ("REDIS_URL", "redis://[::1"),
        ("REDIS_URL", "redis://:hunter2@one,two/0"),
        ("REDIS_URL", "redis://:hunter2@one/main/0"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one,two/"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one,,two/main"),
        ("REDIS_URL", "redis+sentinel://one:port/main"),
        ("REDIS_URL", "redis+sentinel://one:1, two:1/main"),
        ("REDIS_URL", "redis+sentinel://one/main/zero"),
        ("REDIS_URL", "redis+sentinel://one/main?nonsense=1"),
        ("REDIS_URL", "redis+cluster://"),
        ("REDIS_URL", "redis+cluster://:hunter2@one,,two"),
        ("REDIS_URL", "redis+cluster://one:port"),
        ("REDIS_URL", "redis+cluster://one:7001, two:7001"),
        ("REDIS_URL", "redis+cluster://one/1"),
        ("REDIS_URL", "redis+cluster://one?db=1"),
        ("REDIS_URL", "redis+cluster://one?nonsense=1"),
        ("REDIS_URL", "redis://:hunter2/x@127.0.0.1:6379/0"),
        ("REDIS_URL", "unix://"),
        ("SPOTIFY_REDIRECT_URI", "https://api.example.com/a b"),
        ("SPOTIFY_CLIENT_ID", "5a4db0c0ffee4b0cac1e5a4db0c0ffee"),
        ("DATABASE_URL", "mysql+mysqldb://u:p@h/db?connect_timeout=hunter2"),
        ("DATABASE_URL", "sqlite:////x.sqlite3?timeout=hunter2"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("REDIS_URL", "redis://:hunter2@cache:port/0"),
        ("SESSION_MAX_SECONDS", "\u0661\u0662\u0663"),
        ("TRUSTED_PROXIES", "many"),
        ("ALLOW_INSECURE", "postgres"),
        ("ALLOW_INSECURE", "redis;sqlite"),
        ("REFRESH_WORKERS", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("PORT", "70000"),
        ("PORT", "5_000"),
        ("PORT", "5000.0"),
    ],
)
def test_invalid_setting_is_named_without_showing_secrets(name: str, value: str) -> None:
    message = problems_of({**PRODUCTION, name: value})

    assert message.startswith(name)
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("db", [("db", 3306)]),
        ("h1,h2,h3", [("h1", 3306), ("h2", 3306), ("h3", 3306)]),
        ("h1:3306,h2:3307", [("h1", 3306), ("h2", 3307)]),
        ("[2001:db8::1],[2001:db8::2]:3307", [("2001:db8::1", 3306), ("2001:db8::2", 3307)]),
    ],
)
def test_database_url_lists_hosts_in_order_of_preference(hosts: str, expected: list[tuple[str, int]]) -> None:
    config = Config.from_env({**PRODUCTION, "DATABASE_URL": f"mysql+mysqldb://u:hunt/er2@{hosts}/db"})
    parsed = parse_database_url(config.database_url)

    assert [(host.name, host.port) for host in parsed.hosts] == expected
    assert (parsed.url.host, parsed.url.password, parsed.url.database) == (expected[0][0], "hunt/er2", "db")
    assert "hunt" not in parsed.shown


RANGES = {
    "port": (1, 65_535),
    "web_concurrency": (1, 2**31 - 1),
    "threads": (2, 2**31 - 1),
    "database_pool_size": (1, 1000),
    "database_max_overflow": (0, 1000),
    "refresh_lead_seconds": (1, 86_400),
    "refresh_active_days": (1, 2**31 - 1),
    "refresh_rate": (1, 10_000),
    "refresh_workers": (1, 256),
    "gateway_share_seconds": (0, 60),
    "gateway_budget": (1, 1_000_000),
    "trusted_proxies": (0, 5),
    "session_idle_seconds": (1, 2**31 - 1),
    "session_max_seconds": (1, 2**31 - 1),
}


def test_ranges_cover_every_numeric_setting() -> None:
    numeric = {name for name, field in Config.model_fields.items() if field.annotation in (int, int | None)}

    assert numeric == set(RANGES)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_number_outside_its_range_is_reported_with_the_range(name: str) -> None:
    least, most = RANGES[name]
    wanted = "auto or a whole number" if name == "gateway_budget" else "a whole number"

    for text in (str(least - 1), str(most + 1), "1.5", "1_0", "\u0661", "many", "9" * 5000):
        message = problems_of({**DEVELOPMENT, name.upper(): text})
        assert message == f"{name.upper()} must be {wanted} from {least} to {most}.", text


@pytest.mark.parametrize("name", sorted(RANGES))
def test_ends_of_a_range_are_valid(name: str) -> None:
    for number in RANGES[name]:
        assert getattr(Config.from_env({**DEVELOPMENT, name.upper(): str(number)}), name) == number


def test_boolean_that_is_neither_true_nor_false_is_reported_in_plain_words() -> None:
    message = problems_of({**DEVELOPMENT, "PLAYBACK_TOKEN_ENABLED": "maybe"})

    assert message == "PLAYBACK_TOKEN_ENABLED must be true or false."


def test_misspelled_environment_of_a_flask_command_does_not_report_what_production_requires() -> None:
    settings = {**DEVELOPMENT, "APP_ENV": "dev"}

    message = problems_of({**settings, "FLASK_RUN_FROM_CLI": "true"})
    assert message == "APP_ENV must be 'development' or 'production'."
    assert "TRUSTED_HOSTS is not set" in problems_of(settings)  # under gunicorn


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("settings", [PRODUCTION, DEVELOPMENT], ids=["production", "development"])
@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "null",
        "https://app.example.com/",
        "https://*.example.com",
        "https://app.example.com, .*",
        r"https://.*\.example\.com",
        r"^https://app\.example\.com$",
        "https://app.example.com:443",
        "https://app.example.com:99999",
    ],
)
def test_origin_that_is_not_exact_is_rejected(settings: dict[str, str], origins: str) -> None:
    assert problems_of({**settings, "CORS_ORIGINS": origins}).startswith("CORS_ORIGINS")


def test_password_in_an_origin_is_not_shown() -> None:
    found = problems_of(
        {**PRODUCTION, "CORS_ORIGINS": "https://app.example.com,https://ada:se,cret@example.com"}
    )

    assert found.startswith("CORS_ORIGINS has entry 2 (not shown: it may have a password), which is not an ")
    assert not any(part in found for part in ("ada", ":se", "cret"))


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("empty", ["", " ", ","])
def test_production_has_no_default_origins(empty: str) -> None:
    assert problems_of({**PRODUCTION, "CORS_ORIGINS": empty}) == "CORS_ORIGINS is not set. See .env.example."


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example.com:443/", "https://app.example.com"),
        ("https://App.Example.com/welcome?x=1", "https://app.example.com"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_origins_are_written_as_browsers_send_them(url: str, origin: str) -> None:
    config = Config.from_env({**DEVELOPMENT, "FRONTEND_URL": url})

    assert config.cors_origins == (origin, "http://127.0.0.1:5173")


def test_session_lifetimes_can_be_short() -> None:
    config = Config.from_env({**PRODUCTION, "SESSION_IDLE_SECONDS": "2", "SESSION_MAX_SECONDS": "5"})

    assert (config.session_idle_seconds, config.session_max_seconds) == (2, 5)


@pytest.mark.requirement("B7")
@pytest.mark.parametrize(
    ("origins", "redirect_uri"),
    [
        ("https://app.other.com", "https://api.example.com/api/spotify/authorize"),
        ("https://app.example.com,https://example.org", "https://api.example.com/api/spotify/authorize"),
        ("https://10.0.0.1", "https://192.168.0.1/api/spotify/authorize"),
    ],
)
def test_app_on_another_site_requires_a_cross_site_cookie(origins: str, redirect_uri: str) -> None:
    settings = {**PRODUCTION, "CORS_ORIGINS": origins, "SPOTIFY_REDIRECT_URI": redirect_uri}

    assert "SESSION_COOKIE_SAMESITE" in problems_of(settings)
    assert Config.from_env({**CROSS_SITE, "CORS_ORIGINS": origins}).session_cookie_samesite == "None"


@pytest.mark.requirement("B7")
@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://example.com/api/spotify/authorize",
        "https://api.eu.example.com/api/spotify/authorize",
        "https://app.other.com/callback",  # a page of the SPA: it does not say where the API is
    ],
)
def test_app_on_the_same_site_requires_no_cross_site_cookie(redirect_uri: str) -> None:
    assert Config.from_env({**PRODUCTION, "SPOTIFY_REDIRECT_URI": redirect_uri})


def test_cross_site_cookie_must_be_secure() -> None:
    wrong = {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": "false"}

    assert "SESSION_COOKIE_SAMESITE" in problems_of({**PRODUCTION, **wrong})


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(bytes(range(224, 256))).decode(),
        base64.urlsafe_b64encode(bytes(range(224, 256))).decode().rstrip("="),
        bytes(range(224, 256)).hex(),
    ],
    ids=["base64", "base64url without padding", "hexadecimal"],
)
def test_key_may_be_in_any_common_encoding(text: str) -> None:
    config = Config.from_env({**DEVELOPMENT, "TOKEN_ENCRYPTION_KEYS": f"{text}, {KEY}"})

    assert config.token_encryption_keys == (bytes(range(224, 256)), KEY_BYTES)


def test_secrets_are_not_in_the_repr() -> None:
    shown = repr(Config.from_env(PRODUCTION))

    assert "hunter2" not in shown
    assert repr(KEY_BYTES) not in shown


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("", set()), (" , ", set()), ("mail", {"mail"}), ("Redis, sqlite,", {"redis", "sqlite"})],
)
def test_operator_can_accept_insecure_parts_by_name(text: str, accepted: set[str]) -> None:
    assert Config.from_env({**PRODUCTION, "ALLOW_INSECURE": text}).allow_insecure == accepted


def insecure_names(changes: dict[str, str], settings: dict[str, str] = PRODUCTION) -> set[str]:
    """The settings that production complains about, after these changes. Each complaint says what to do."""
    try:
        Config.from_env({**settings, **changes})
    except ConfigError as error:
        lines = str(error).splitlines()
    else:
        return set()
    assert all(re.search(r"\. (Use|Make one|Remove|Point|Serve|List)|needs", line) for line in lines), lines
    return {re.split("[ :=]", line)[0] for line in lines}


def text_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


INSECURE = [
    ("SESSION_COOKIE_SECURE", "false"),
    ("FRONTEND_URL", "http://app.example.com/"),
    ("FRONTEND_URL", "HTTP://app.example.com/"),
    ("FRONTEND_URL", "http://127.0.0.1:5173/"),
    ("FRONTEND_URL", "http://localhost/"),
    ("FRONTEND_URL", "http://app.localhost/"),
    ("CORS_ORIGINS", "http://app.example.com"),
    ("CORS_ORIGINS", "https://app.example.com,http://app.example.com:8080"),
    ("CORS_ORIGINS", "https://app.example.com, http://127.0.0.1:5173"),
    ("CORS_ORIGINS", "https://app.example.com, http://10.0.0.8"),
    ("CORS_ORIGINS", "https://app.example.com, http://app.localhost:5173"),
    ("REDIS_URL", "redis://cache:6379/0"),
    ("REDIS_URL", "redis://10.0.0.8"),
    ("REDIS_URL", "redis://somebody@cache/0"),
    ("REDIS_URL", "redis://:@cache/0"),
    ("REDIS_URL", "redis://[2001:db8::1]:6379/0"),
    ("REDIS_URL", "rediss://cache?ssl_cert_reqs=none"),
    ("REDIS_URL", "rediss://cache?ssl_check_hostname=false"),
    ("REDIS_URL", "redis+sentinel://127.0.0.1/main"),
    ("REDIS_URL", "redis+cluster://127.0.0.1"),
    ("DATABASE_URL", "sqlite:////var/lib/backline.sqlite3"),
    ("DATABASE_URL", "sqlite+pysqlite:////var/lib/backline.sqlite3"),
    ("TRUSTED_HOSTS", " , "),
    ("SECRET_KEY", "a" * 43),
    ("SECRET_KEY", "01" * 20),
    ("SECRET_KEY", "changeme" * 4),
    ("SECRET_KEY", "please-Change_Me-1234"),
    ("SECRET_KEY", "my-super-secret-key"),
    ("SECRET_KEY", "abcdefghijklmnopqrstuvwxyz"),
    ("SECRET_KEY", "0123456789abcdef0123456789abcdef"),
    ("TOKEN_ENCRYPTION_KEYS", text_key(bytes(32))),
    ("TOKEN_ENCRYPTION_KEYS", "ff" * 32),
    ("TOKEN_ENCRYPTION_KEYS", f"{KEY},{text_key(b'k' * 32)}"),
    ("TOKEN_ENCRYPTION_KEYS", text_key(b"\x00\xff" * 16)),
    ("TOKEN_ENCRYPTION_KEYS", text_key(bytes(range(32)))),
    ("TOKEN_ENCRYPTION_KEYS", text_key(bytes(range(255, 223, -1)))),
    ("TOKEN_ENCRYPTION_KEYS", text_key(b"change me please" * 2)),
    ("TOKEN_ENCRYPTION_KEYS", text_key(b"your-secret-encryption-key-here!")),
    ("SPOTIFY_CLIENT_ID", "5a4db0c0ffee4b0cac1e5a4db0c0ffee"),
    ("SPOTIFY_REDIRECT_URI", "http://127.0.0.1:5000/api/spotify/authorize"),
    ("REDIS_URL", "redis+sentinel://:ChangeMe!@one,two/main"),
    ("DATABASE_URL", "mysql+mysqldb://backline:password1@db/backline"),
    ("FLASK_DEBUG", "1"),
]


@pytest.mark.parametrize(("name", "value"), INSECURE)
def test_production_rejects_an_insecure_setting(name: str, value: str) -> None:
    assert insecure_names({name: value}) == {name}


@pytest.mark.requirement("M5")
def test_production_reports_every_insecure_setting_at_once() -> None:
    insecure = {
        "SESSION_COOKIE_SECURE": "false",
        "FRONTEND_URL": "http://app.example.com/",
        "CORS_ORIGINS": "http://app.example.com",
        "REDIS_URL": "redis://cache",
        "DATABASE_URL": "sqlite:////var/lib/backline.sqlite3",
        "TRUSTED_HOSTS": "",
        "SECRET_KEY": "x" * 32,
        "TOKEN_ENCRYPTION_KEYS": text_key(bytes(32)),
        "SPOTIFY_REDIRECT_URI": "https://api.example.com/api/spotify/authorize/",
        "ALLOW_INSECURE": "everything",
        "LOG_LEVEL": "LOUD",
    }
    message = problems_of({**PRODUCTION, **insecure})

    assert {re.split("[ :=]", line)[0] for line in message.splitlines()} == set(insecure)
    assert len(message.splitlines()) == len(insecure)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("redis", "REDIS_URL", "redis://cache:6379/0"),
        ("sqlite", "DATABASE_URL", "sqlite:////var/lib/backline.sqlite3"),
    ],
)
def test_accepting_one_insecure_part_accepts_no_other(part: str, name: str, value: str) -> None:
    assert insecure_names({name: value, "ALLOW_INSECURE": part}) == set()
    assert insecure_names({name: value, "ALLOW_INSECURE": "mail"}) == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://127.0.0.1:6379/0"),
        ("REDIS_URL", "redis://localhost"),
        ("REDIS_URL", "redis://[::1]/0"),
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("REDIS_URL", "rediss://cache:6379/0"),
        ("REDIS_URL", "redis+sentinel://:hunter2@127.0.0.1,[::1]:26380/main?socket_timeout=1"),
        ("REDIS_URL", "rediss+sentinel://one/main?ssl_ca_certs=/etc/ca.pem"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one,two/main"),
        ("REDIS_URL", "rediss+sentinel://one,two:26380/main/2"),
        ("REDIS_URL", "redis+cluster://app:hunter2@127.0.0.1:7001,[::1]:7002"),
        ("REDIS_URL", "rediss+cluster://one,two:7001/0?ssl_ca_certs=/etc/ca.pem"),
        ("REDIS_URL", "redis://cache/0?password=hunter2"),
        ("SECRET_KEY", "Zm9vYmFyLXF1dXgtMTIzNDU"),
        ("SECRET_KEY", "correct horse battery staple"),
        ("TOKEN_ENCRYPTION_KEYS", "9f1c3b7e5a2d4860b1c7e3f5092a6d8c4b0e7f1935ac6d2840e9b3f7c15a8d60"),
        ("TRUSTED_HOSTS", ".example.com"),
        ("TRUSTED_HOSTS", "api.example.com:8443,192.0.2.7"),
    ],
)
def test_production_accepts_a_setting_that_is_secure_enough(name: str, value: str) -> None:
    assert insecure_names({name: value}) == set()


def test_plain_http_is_accepted_on_one_machine() -> None:
    local = {
        **PRODUCTION,
        "TRUSTED_HOSTS": "127.0.0.1",
        "SPOTIFY_REDIRECT_URI": "http://127.0.0.1:5000/api/spotify/authorize",
        "FRONTEND_URL": "http://127.0.0.1:5173/",
        "CORS_ORIGINS": "http://127.0.0.1:5173",
    }

    assert not Config.from_env(local).session_cookie_secure
    assert insecure_names({"TRUSTED_HOSTS": "api.example.com"}, local) == {
        "SPOTIFY_REDIRECT_URI",
        "FRONTEND_URL",
        "CORS_ORIGINS",
    }
    assert insecure_names({"CORS_ORIGINS": "http://10.0.0.8:5173"}, local) == {"CORS_ORIGINS"}


@pytest.mark.parametrize("trusted_hosts", ["api.example.com", "127.0.0.1"])  # a proxy may rewrite the name
def test_desktop_app_with_a_loopback_redirect_keeps_a_secure_cookie(trusted_hosts: str) -> None:
    desktop = {
        **PRODUCTION,
        "SPOTIFY_REDIRECT_URI": "http://127.0.0.1:8888/callback",
        "TRUSTED_HOSTS": trusted_hosts,
    }

    assert Config.from_env(desktop).session_cookie_secure
    assert insecure_names({"SESSION_COOKIE_SECURE": "false"}, desktop) == {"SESSION_COOKIE_SECURE"}


def test_development_accepts_what_production_rejects() -> None:
    for name, value in INSECURE:
        if name != "SPOTIFY_CLIENT_ID":  # it would need a secret
            assert Config.from_env({**DEVELOPMENT, name: value}), name


# --- Where Spotify sends browsers back to -----------------------------------------------------------

API = "https://api.example.com"


@pytest.mark.parametrize("samesite", ["None", "Strict"])
def test_cookie_that_callbacks_would_lack_is_rejected(samesite: str) -> None:
    message = problems_of({**PRODUCTION, "SESSION_COOKIE_SAMESITE": samesite})

    assert message.startswith(f"SESSION_COOKIE_SAMESITE={samesite} does not work")
    assert "Point SPOTIFY_REDIRECT_URI at a page of your app" in message
    assert len(message.splitlines()) == 1


def test_strict_cookie_works_with_a_redirect_to_a_page() -> None:
    page = {**PRODUCTION, "SPOTIFY_REDIRECT_URI": "https://app.example.com/callback?from=spotify"}
    config = Config.from_env({**page, "SESSION_COOKIE_SAMESITE": "strict"})

    assert config.session_cookie_samesite == "Strict"
    assert not config.redirects_to_api


@pytest.mark.parametrize("samesite", ["Lax", "None"])
@pytest.mark.parametrize(
    "uri",
    [
        f"{API}/api/spotify/authorize/",
        f"{API}//api/spotify/authorize",
        f"{API}/api//spotify/authorize",
        f"{API}/./api/spotify/authorize",
        f"{API}/x/../api/spotify/authorize",
        f"{API}/API/Spotify/Authorize",
        f"{API}/api/spotify/%61uthorize",
        f"{API}/api%2Fspotify%2Fauthorize",
        f"{API}/api/spotify/authorize?",
        f"{API}/api/spotify/authorize?from=spotify",
        f"{API}/api/spotify/authorize;x",
        f"{API}/api/spotify/authorize%20",
        f"{API}/api/spotify/authorise",
        f"{API}/api/spotify/callback",
        f"{API}/api/spotify",
        f"{API}/api",
        f"{API}/callback",
        f"{API}/",
        f"{API}",
        "https://API.example.com:443/api/spotify/authorize/",
        "https://elsewhere.example.com/api/spotify/authorize/",
    ],
)
def test_redirect_uri_at_the_api_has_one_form(uri: str, samesite: str) -> None:
    changes = {"SPOTIFY_REDIRECT_URI": uri, "SESSION_COOKIE_SAMESITE": samesite}

    assert insecure_names(changes) == {"SPOTIFY_REDIRECT_URI"}


@pytest.mark.parametrize("settings", [PRODUCTION, DEVELOPMENT], ids=["production", "development"])
@pytest.mark.parametrize(
    "uri",
    [
        "https://api.example.com#",
        f"https://user@api.example.com{AUTHORIZE_PATH}",
        f"https://@api.example.com{AUTHORIZE_PATH}",
        rf"https://api.example.com\{AUTHORIZE_PATH}",
        f"https://localhost{AUTHORIZE_PATH}",
        f"http://localhost:5000{AUTHORIZE_PATH}",
        f"http://2130706433{AUTHORIZE_PATH}",
        "backline://callback",
    ],
)
def test_redirect_uri_follows_the_rules_of_spotify(settings: dict[str, str], uri: str) -> None:
    assert problems_of({**settings, "SPOTIFY_REDIRECT_URI": uri}).startswith("SPOTIFY_REDIRECT_URI must be")


@pytest.mark.parametrize(
    ("uri", "to_api"),
    [
        (f"{API}/api/spotify/authorize", True),
        ("HTTPS://Api.Example.com:443/api/spotify/authorize", True),
        (f"{API}/backend/api/spotify/authorize", True),  # behind a proxy that removes the prefix
        ("https://app.example.com/callback", False),
        ("https://app.example.com/", False),
        ("https://app.example.com/api/callback", False),
    ],
)
def test_redirect_uri_leads_to_the_api_or_to_a_page(uri: str, to_api: bool) -> None:
    assert Config.from_env({**PRODUCTION, "SPOTIFY_REDIRECT_URI": uri}).redirects_to_api is to_api


def test_page_on_the_host_of_the_api_is_a_page() -> None:
    one_host = {**PRODUCTION, "FRONTEND_URL": f"{API}/app", "CORS_ORIGINS": API}

    assert not Config.from_env({**one_host, "SPOTIFY_REDIRECT_URI": f"{API}/callback"}).redirects_to_api
    assert insecure_names({"SPOTIFY_REDIRECT_URI": f"{API}/api/callback"}, one_host)


def test_redirect_uri_is_checked_in_development_too() -> None:
    for path in ("api/spotify/authorize/", "callback", ""):
        wrong = {**DEVELOPMENT, "SPOTIFY_REDIRECT_URI": f"http://127.0.0.1:5000/{path}"}
        assert problems_of(wrong).startswith("SPOTIFY_REDIRECT_URI leads to this API, but not to the path")

    for port in (5173, 8888):
        right = {**DEVELOPMENT, "SPOTIFY_REDIRECT_URI": f"http://127.0.0.1:{port}/callback"}
        assert not Config.from_env(right).redirects_to_api


# --- Origins and headers of apps --------------------------------------------------------------------

WRAPPED = [
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://2f7c5f7e-6d4e-4f0c-9a4e-0a1b2c3d4e5f",
    "https://localhost",
    "http://tauri.localhost",
]


@pytest.mark.parametrize(
    "settings", [PRODUCTION, CROSS_SITE, DEVELOPMENT], ids=["production", "cross-site", "development"]
)
@pytest.mark.parametrize("origin", WRAPPED)
def test_origin_of_an_app_in_a_native_shell_is_accepted(settings: dict[str, str], origin: str) -> None:
    assert Config.from_env({**settings, "CORS_ORIGINS": origin}).cors_origins == (origin,)


@pytest.mark.parametrize("settings", [CROSS_SITE, DEVELOPMENT], ids=["production", "development"])
@pytest.mark.parametrize(
    "origin",
    [
        "capacitor://*",
        "capacitor://",
        "capacitor://localhost/",
        "capacitor://localhost/index.html",
        "Capacitor://localhost",
        "chrome-extension://*",
        "safari-web-extension://2f7c5f7e",
        "file://",
        "app://localhost",
        "data:text/html,x",
    ],
)
def test_origin_with_another_scheme_or_form_is_rejected(settings: dict[str, str], origin: str) -> None:
    assert "an exact origin such as" in problems_of({**settings, "CORS_ORIGINS": origin})


def test_header_names_are_added_to_those_for_tracing() -> None:
    traces = ("sentry-trace", "baggage", "traceparent")
    assert Config.from_env(PRODUCTION).cors_allow_headers == traces

    config = Config.from_env({**PRODUCTION, "CORS_ALLOW_HEADERS": "tracestate, X-App_Version,baggage"})
    assert config.cors_allow_headers == (*traces, "tracestate", "X-App_Version")


@pytest.mark.parametrize("settings", [PRODUCTION, DEVELOPMENT], ids=["production", "development"])
@pytest.mark.parametrize(
    "names",
    [
        "*",
        "x-*",
        "x-app, *",
        "x app",
        "x:app",
        "x-äpp",
        "^x$",
        "(x)",
        "x\r\nSet-Cookie",
        "Authorization",
        "cookie",
        "X-Forwarded-For",
        "Sec-Fetch-Site",
    ],
)
def test_header_that_apps_must_not_send_is_rejected(settings: dict[str, str], names: str) -> None:
    assert problems_of({**settings, "CORS_ALLOW_HEADERS": names}).startswith("CORS_ALLOW_HEADERS has")
