"""django-allauth headless, with sessions in Redis and users in MariaDB.

Settings are passed as JSON in the environment variable BENCHMARK.
"""

import json
import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import include, path

SETTINGS: dict[str, Any] = json.loads(os.environ["BENCHMARK"])
_database = urlsplit(SETTINGS["database_url"])

settings.configure(
    SECRET_KEY=SETTINGS["secret"],
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "allauth",
        "allauth.account",
        "allauth.headless",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "allauth.account.middleware.AccountMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    AUTHENTICATION_BACKENDS=["allauth.account.auth_backends.AuthenticationBackend"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "NAME": _database.path.strip("/"),
            "USER": _database.username,
            "HOST": parse_qs(_database.query)["unix_socket"][0],
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
        }
    },
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": SETTINGS["redis_url"],
            "KEY_PREFIX": "django-allauth",
        }
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    ACCOUNT_EMAIL_VERIFICATION="none",
    ACCOUNT_RATE_LIMITS=False,
    ACCOUNT_LOGIN_METHODS={"email"},
    ACCOUNT_SIGNUP_FIELDS=["email*", "password1*"],
    HEADLESS_ONLY=True,
    HEADLESS_FRONTEND_URLS={"account_signup": "http://127.0.0.1/signup"},
    LOGGING_CONFIG=None,
)
django.setup()
urlpatterns = [path("_allauth/", include("allauth.headless.urls"))]
application = get_wsgi_application()

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
