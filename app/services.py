"""The long-lived objects that `create_app` builds, for routes and commands to look up.

The types are imported for the type checker only: routes import this module, and some of the types are from
the packages that those routes belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    import redis

    from app.auth.devices.flow import DeviceFlow
    from app.auth.email_change import EmailChanges
    from app.auth.jwt_issuer import JwtIssuer
    from app.auth.login import Authenticator
    from app.auth.notifications import Notifications
    from app.auth.password_change import PasswordChanges
    from app.auth.passwords import Passwords
    from app.auth.personal_access_tokens import PersonalAccessTokens
    from app.infra.encryption import TokenCipher
    from app.infra.hourly_counts import HourlyCounts
    from app.infra.redis_cipher import RedisCipher
    from app.infra.row_versions import RowVersions
    from app.mail.mailer import Mailer
    from app.spotify.app_registration.registration import AppRegistration
    from app.spotify.applications.lookup import Applications
    from app.spotify.clients.accounts import SpotifyAccounts
    from app.spotify.clients.rate_limit import SpotifyRateLimiter
    from app.spotify.clients.web_api import SpotifyWebApi
    from app.spotify.connections import Connections
    from app.spotify.gateway.cache import ResponseCache
    from app.spotify.gateway.proxy import Gateway
    from app.spotify.oauth.flow import AuthorizationFlow
    from app.spotify.tokens.maintenance import Maintenance
    from app.spotify.tokens.scheduler import Scheduler
    from app.spotify.tokens.service import TokenService
    from app.user.account import UserAccounts
    from app.web.throttle import Throttle
    from config import Config


@dataclass(frozen=True)
class Services:
    """The long-lived objects that `create_app` builds."""

    config: Config
    redis: redis.Redis
    redis_cipher: RedisCipher  # for values in Redis that grant something
    row_versions: RowVersions
    token_cipher: TokenCipher
    accounts: SpotifyAccounts
    applications: Applications
    web_api: SpotifyWebApi
    rate_limiter: SpotifyRateLimiter  # of the deployment's application
    response_cache: ResponseCache
    gateway: Gateway
    connections: Connections
    authorization_flow: AuthorizationFlow
    app_registration: AppRegistration
    throttle: Throttle
    hourly_counts: HourlyCounts
    tokens: TokenService
    mailer: Mailer
    maintenance: Maintenance
    scheduler: Scheduler
    notifications: Notifications
    passwords: Passwords
    authenticator: Authenticator
    jwt_issuer: JwtIssuer | None  # None unless it is configured
    password_changes: PasswordChanges
    email_changes: EmailChanges
    personal_access_tokens: PersonalAccessTokens
    device_flow: DeviceFlow
    user_accounts: UserAccounts


def services() -> Services:
    """Return the services of the current application."""
    return cast("Services", current_app.extensions["backline"])
