"""better-auth-server's Flask integration, on MariaDB.

Settings are passed as JSON in the environment variable BENCHMARK.
"""

import asyncio
import json
import os
from typing import Any

from better_auth import AccountLinking, AccountOptions, BetterAuth, EmailAndPassword, RateLimit
from better_auth.adapters.sqlalchemy import SQLAlchemyAdapter
from better_auth.integrations.flask import BetterAuthFlask
from better_auth.oauth.models import OAuthUserInfo
from better_auth.oauth.providers_ext.spotify import Spotify
from flask import Flask
from sqlalchemy.ext.asyncio import create_async_engine

SETTINGS: dict[str, Any] = json.loads(os.environ["BENCHMARK"])


class SandboxSpotify(Spotify):
    """Spotify, with an address that it says it has verified."""

    def map_profile(self, profile: dict[str, Any]) -> OAuthUserInfo:
        """Return the person."""
        return OAuthUserInfo(
            id=profile["id"],
            email=SETTINGS["email"],
            name=profile["display_name"],
            image=None,
            email_verified=True,
            raw=profile,
        )


def create_auth() -> tuple[BetterAuth, SQLAlchemyAdapter]:
    """Configure better-auth-server as for production, without rate limits."""
    adapter = SQLAlchemyAdapter(create_async_engine(SETTINGS["async_database_url"], pool_size=8))
    spotify = SandboxSpotify(
        client_id=SETTINGS["clientId"],
        client_secret=SETTINGS["clientSecret"],
        authorization_endpoint=f"{SETTINGS['accountsUrl']}/authorize",
        token_endpoint=f"{SETTINGS['accountsUrl']}/api/token",
        userinfo_endpoint=f"{SETTINGS['apiUrl']}/me",
        scopes=["user-read-email", "streaming"],
    )
    linking = AccountLinking(trusted_providers=["spotify"], allow_different_emails=True)
    auth = BetterAuth(
        secret=SETTINGS["secret"],
        base_url=SETTINGS["url"],
        adapter=adapter,
        email_and_password=EmailAndPassword(enabled=True),
        social_providers={"spotify": spotify},
        account=AccountOptions(account_linking=linking),
        rate_limit=RateLimit(enabled=False),
    )
    return auth, adapter


def create_app() -> Flask:
    """Create the application."""
    app = Flask(__name__)
    app.register_blueprint(BetterAuthFlask(create_auth()[0]).blueprint)
    return app


if __name__ == "__main__":
    asyncio.run(create_auth()[1].create_tables())
