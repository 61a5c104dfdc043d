"""Settings: complete, checked as a whole, and never shown."""

import base64
from pathlib import Path

import pytest

from config import Config, ConfigError, read_environment

KEY = base64.b64encode(bytes(32)).decode()
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
}


def problems_of(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as raised:
        Config.from_env(environ)
    return str(raised.value)


def test_development_needs_two_secrets_and_nothing_else() -> None:
    config = Config.from_env(DEVELOPMENT)

    assert config.uses_sandbox
    assert config.spotify_accounts_url == "http://127.0.0.1:5001"
    assert config.spotify_redirect_uri == "http://127.0.0.1:5000/api/spotify/authorize"
    assert config.database_url.startswith("sqlite:////")
    assert config.session_cookie_name == "session"
    assert "http://127.0.0.1:5173" in config.cors_origins


def test_another_port_moves_what_depends_on_it() -> None:
    config = Config.from_env({**DEVELOPMENT, "PORT": "5050"})

    assert config.spotify_redirect_uri == "http://127.0.0.1:5050/api/spotify/authorize"
    assert config.frontend_url == "http://127.0.0.1:5050/api/docs"


def test_a_real_client_id_means_the_real_spotify() -> None:
    config = Config.from_env({**DEVELOPMENT, "SPOTIFY_CLIENT_ID": "abc", "SPOTIFY_CLIENT_SECRET": "x"})

    assert not config.uses_sandbox
    assert config.spotify_accounts_url == "https://accounts.spotify.com"
    assert config.spotify_api_url == "https://api.spotify.com/v1"


def test_a_secret_without_an_id_is_a_mistake() -> None:
    assert "SPOTIFY_CLIENT_ID" in problems_of({**DEVELOPMENT, "SPOTIFY_CLIENT_SECRET": "x"})


def test_a_dotenv_file_in_another_encoding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.ROOT", tmp_path)
    monkeypatch.delenv("FLASK_SKIP_DOTENV", raising=False)
    (tmp_path / ".env").write_text("PORT=5055\n", encoding="utf-8-sig")
    assert read_environment()["PORT"] == "5055"

    (tmp_path / ".env").write_text("PORT=5055\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        read_environment()


def test_production_is_the_default_outside_flasks_own_command() -> None:
    assert Config.from_env(PRODUCTION).app_env == "production"
    assert (
        Config.from_env({**DEVELOPMENT, "APP_ENV": "", "FLASK_RUN_FROM_CLI": "true"}).app_env == "development"
    )


def test_production_is_secure_by_default() -> None:
    config = Config.from_env(PRODUCTION)

    assert config.session_cookie_name == "__Host-session"
    assert config.cors_origins == ("https://app.example.com",)


def test_production_refuses_to_start_on_defaults_and_says_all_at_once() -> None:
    message = problems_of({"APP_ENV": "production"})

    for name in PRODUCTION:
        assert name in message, name
    assert len(message.splitlines()) == len(PRODUCTION)


@pytest.mark.parametrize("missing", sorted(PRODUCTION))
def test_production_needs_each_of_its_settings(missing: str) -> None:
    assert missing in problems_of({name: value for name, value in PRODUCTION.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_ENV", "staging"),
        ("SECRET_KEY", "short"),
        ("TOKEN_ENCRYPTION_KEYS", "not a key"),
        ("TOKEN_ENCRYPTION_KEYS", base64.b64encode(bytes(31)).decode()),
        ("TOKEN_ENCRYPTION_KEYS", f"{KEY},oops"),
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
        ("SESSION_COOKIE_SECURE", "maybe"),
        ("SESSION_COOKIE_SAMESITE", "Strict"),
        ("SESSION_IDLE_SECONDS", "0"),
        ("SESSION_IDLE_SECONDS", "-5"),
        ("SESSION_MAX_SECONDS", "0"),
        ("SPOTIFY_CLIENT_SECRET", "pasted\u2019quote"),
        ("SPOTIFY_CLIENT_ID", "two words"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h:port/db"),
        ("DATABASE_URL", "mysql+mysqldb://u:hunter2@h"),
        ("REDIS_URL", "redis:"),
        ("REDIS_URL", "redis://[::1"),
        ("REDIS_URL", "redis://:hunter2/x@127.0.0.1:6379/0"),
        ("REDIS_URL", "unix://"),
        ("SPOTIFY_REDIRECT_URI", "https://api.example.com/a b"),
        ("SPOTIFY_CLIENT_ID", "5a4db0c0ffee4b0cac1e5a4db0c0ffee"),
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
    ],
)
def test_a_wrong_setting_is_named_and_secrets_are_not_shown(name: str, value: str) -> None:
    message = problems_of({**PRODUCTION, name: value})

    assert message.startswith(name)
    assert "hunter2" not in message


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
def test_c1_an_origin_that_is_not_exact_refuses_the_start(settings: dict[str, str], origins: str) -> None:
    assert problems_of({**settings, "CORS_ORIGINS": origins}).startswith("CORS_ORIGINS")


@pytest.mark.parametrize("nobody", ["", " ", ","])
def test_c1_production_has_no_origins_that_nobody_has_listed(nobody: str) -> None:
    assert problems_of({**PRODUCTION, "CORS_ORIGINS": nobody}) == "CORS_ORIGINS is not set. See .env.example."


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example.com:443/", "https://app.example.com"),
        ("https://App.Example.com/welcome?x=1", "https://app.example.com"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(url: str, origin: str) -> None:
    config = Config.from_env({**DEVELOPMENT, "FRONTEND_URL": url})

    assert config.cors_origins == (origin, "http://127.0.0.1:5173")


def test_short_sessions_are_a_choice() -> None:
    config = Config.from_env({**PRODUCTION, "SESSION_IDLE_SECONDS": "2", "SESSION_MAX_SECONDS": "5"})

    assert (config.session_idle_seconds, config.session_max_seconds) == (2, 5)


@pytest.mark.parametrize(
    ("origins", "redirect_uri"),
    [
        ("https://app.other.com", "https://api.example.com/api/spotify/authorize"),
        ("https://app.example.com,https://example.org", "https://api.example.com/api/spotify/authorize"),
        ("http://app.example.com", "https://api.example.com/api/spotify/authorize"),
    ],
)
def test_b7_an_app_on_another_site_needs_a_cookie_for_other_sites(origins: str, redirect_uri: str) -> None:
    settings = {**PRODUCTION, "CORS_ORIGINS": origins, "SPOTIFY_REDIRECT_URI": redirect_uri}

    assert "SESSION_COOKIE_SAMESITE" in problems_of(settings)
    assert Config.from_env({**settings, "SESSION_COOKIE_SAMESITE": "None"}).cors_origins


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://example.com/api/spotify/authorize",
        "https://api.eu.example.com/api/spotify/authorize",
        "https://app.other.com/callback",  # a page of the SPA: it does not say where the API is
    ],
)
def test_b7_an_app_on_the_same_site_does_not(redirect_uri: str) -> None:
    assert Config.from_env({**PRODUCTION, "SPOTIFY_REDIRECT_URI": redirect_uri})


def test_a_cookie_for_other_sites_has_to_be_secure() -> None:
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
def test_a_key_may_be_written_in_any_usual_way(text: str) -> None:
    config = Config.from_env({**DEVELOPMENT, "TOKEN_ENCRYPTION_KEYS": f"{text}, {KEY}"})

    assert config.token_encryption_keys == (bytes(range(224, 256)), bytes(32))


def test_secrets_are_not_in_the_repr() -> None:
    shown = repr(Config.from_env(PRODUCTION))

    assert "hunter2" not in shown
    assert repr(bytes(32)) not in shown


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("", set()), (" , ", set()), ("mail", {"mail"}), ("Redis, sqlite,", {"redis", "sqlite"})],
)
def test_operator_names_the_insecure_parts_to_accept(text: str, accepted: set[str]) -> None:
    assert Config.from_env({**PRODUCTION, "ALLOW_INSECURE": text}).allow_insecure == accepted
