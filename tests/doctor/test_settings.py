"""Settings that `flask doctor` warns about."""

import pytest

from app.doctor.result import Status
from app.doctor.settings import check_names, check_settings, guess_proxies
from config import Config
from tests.test_config import CROSS_SITE, DEVELOPMENT, PRODUCTION

GOOD = {**PRODUCTION, "TRUSTED_PROXIES": "1", "REDIS_URL": "rediss://cache"} | {
    "DATABASE_URL": f"{PRODUCTION['DATABASE_URL']}&ssl_ca=/etc/ssl/ca.pem"
}


def warnings(settings: dict[str, str]) -> list[str]:
    config = Config.from_env(settings)
    results = [*check_settings(config), *guess_proxies(config)]
    assert Status.FAILURE not in {result.status for result in results}
    return [f"{result.summary}: {result.advice}" for result in results if result.status is Status.WARNING]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"TRUSTED_PROXIES": "0"}, ["TRUSTED_PROXIES is 0", "http://", "TRUSTED_PROXIES to 1"]),
        ({"TRUSTED_PROXIES": "2"}, ["TRUSTED_PROXIES=2", "set_real_ip_from"]),
        ({"ALLOW_INSECURE": "sqlite,mail"}, ["mail, sqlite", "from ALLOW_INSECURE"]),
        ({"REDIS_URL": "redis://:hunter2@cache/0"}, ["without TLS", "Redis", "rediss://"]),
        ({"DATABASE_URL": PRODUCTION["DATABASE_URL"]}, ["without TLS", "the database", "ssl_ca"]),
        ({"TRUSTED_HOSTS": "backline.internal"}, ["api.example.com is not in TRUSTED_HOSTS"]),
        (
            {"CORS_ORIGINS": "https://app.example.com,capacitor://localhost"},
            ["capacitor://localhost is on another site", "unless", "SESSION_COOKIE_SAMESITE=None"],
        ),
        ({"SPOTIFY_REDIRECT_URI": "https://www.example.com/cb"}, ["https://www.example.com is not in CORS"]),
        (
            {"CORS_ORIGINS": "https://a.example.org", "SPOTIFY_REDIRECT_URI": "https://a.example.org/cb"},
            ["https://a.example.org is on another site than api.example.com", "SESSION_COOKIE_SAMESITE=None"],
        ),
    ],
)
def test_unusual_setting_gets_a_warning_with_advice(changes: dict[str, str], words: list[str]) -> None:
    [warning] = warnings({**GOOD, **changes})

    assert all(word in warning for word in words), warning
    assert "hunter2" not in warning


@pytest.mark.requirement("B7")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FRONTEND_URL": "http://localhost:5173"}, ["localhost:5173 is on another", "at http://127.0.0.1"]),
        ({"SESSION_COOKIE_SECURE": "true"}, ["Secure cookie over plain http"]),
    ],
)
def test_setting_that_browsers_reject_gets_a_warning_in_development(
    changes: dict[str, str], words: list[str]
) -> None:
    [warning] = warnings({**DEVELOPMENT, **changes})

    assert all(word in warning for word in words), warning


@pytest.mark.parametrize(
    "settings",
    [
        DEVELOPMENT,
        GOOD,
        {**CROSS_SITE, **{name: GOOD[name] for name in ("TRUSTED_PROXIES", "REDIS_URL", "DATABASE_URL")}},
        {**GOOD, "TRUSTED_HOSTS": ".example.com"},
        {**GOOD, "REDIS_URL": "unix:///run/redis.sock"},
        {**GOOD, "DATABASE_URL": "mysql+mysqldb://u@localhost/db?unix_socket=/run/mysqld.sock"},
        {**GOOD, "SPOTIFY_REDIRECT_URI": "http://127.0.0.1:8888/callback"},
    ],
)
def test_usual_settings_get_no_warning(settings: dict[str, str]) -> None:
    assert warnings(settings) == []


def test_misspelled_setting_is_named_with_the_one_that_it_resembles() -> None:
    usual = {**GOOD, "PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "FLASK_APP": "wsgi:app"}
    assert list(check_names(usual)) == []
    found = check_names({**usual, "SPOTIFY_SIGNIN": "true", "REDIS_URI": "redis://cache"})
    assert [(result.status, result.summary.split()[0], result.advice) for result in found] == [
        (Status.WARNING, "REDIS_URI", "REDIS_URL is one."),
        (Status.WARNING, "SPOTIFY_SIGNIN", "SPOTIFY_SIGN_IN is one."),
    ]
