"""Builds the services: which object gets which others."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import redis
from flask import Flask

from app.auth.devices.flow import DeviceFlow
from app.auth.devices.store import DeviceAuthorizationStore
from app.auth.email_change import EmailChanges
from app.auth.login import Authenticator
from app.auth.notifications import Notifications
from app.auth.password_change import PasswordChanges
from app.auth.passwords import Passwords
from app.auth.personal_access_tokens import PersonalAccessTokens
from app.auth.spotify_sign_in import SpotifySignIn
from app.imports.profiles import ImportedProfiles
from app.infra.encryption import TokenCipher
from app.infra.hourly_counts import HourlyCounts
from app.infra.http_client import HttpClient
from app.infra.redis_cipher import RedisCipher
from app.infra.redis_client import redis_client
from app.infra.row_versions import RowVersions
from app.mail.mailer import Mailer
from app.mail.transport import create_transport
from app.resilience.bulkhead import Bulkhead
from app.resilience.redis_lock import RedisLocks
from app.resilience.single_flight import SingleFlight
from app.services import Services
from app.spotify.app_registration.registration import AppRegistration
from app.spotify.applications.lookup import Applications
from app.spotify.applications.pauses import ApplicationPauses
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import ApplicationKind
from app.spotify.clients.capacity import WEB_API_QUEUE, accounts_waiters, web_api_slots
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.web_api import SpotifyWebApi
from app.spotify.connections import Connections
from app.spotify.gateway.cache import ResponseCache
from app.spotify.gateway.proxy import Gateway
from app.spotify.oauth.callback import CallbackHandler
from app.spotify.oauth.exchange import CodeExchange
from app.spotify.oauth.flow import AuthorizationFlow
from app.spotify.oauth.state import AuthorizationStore
from app.spotify.oauth.usable_connection import UsableConnection
from app.spotify.tokens.batch_claims import BatchClaims
from app.spotify.tokens.maintenance import Maintenance
from app.spotify.tokens.refresh import GrantSnapshot, Refresher
from app.spotify.tokens.scheduler import Scheduler
from app.spotify.tokens.service import TokenService
from app.spotify.ways_in import SpotifyWayIn
from app.user.account import UserAccounts
from app.user.emails import EmailWriter
from app.web import trace_context
from app.web.throttle import Throttle
from config import Config

if TYPE_CHECKING:
    from app.auth.jwt_issuer import JwtIssuer


@dataclass(frozen=True)
class _Clients:
    """The clients of Spotify's two hosts, and what limits their calls."""

    accounts: SpotifyAccounts
    accounts_bulkhead: AccountsBulkhead
    web_api: SpotifyWebApi
    limits: ClientLimitsRegistry


@dataclass(frozen=True)
class _Spotify:
    """What connects people with Spotify, and uses their connections."""

    applications: Applications
    tokens: TokenService
    response_cache: ResponseCache
    gateway: Gateway
    connections: Connections
    way_in: SpotifyWayIn
    authorization_flow: AuthorizationFlow
    imported_profiles: ImportedProfiles


def build_services(app: Flask, config: Config) -> Services:
    """Build the services. Opens no connection."""
    client = redis_client(config.redis_url)
    redis_cipher = RedisCipher(config.secret_key)
    token_cipher = TokenCipher(config.token_encryption_keys)
    hourly_counts = HourlyCounts(client)
    throttle = Throttle(client, config.secret_key, hourly_counts)
    mailer = Mailer(app, create_transport(config), EmailWriter(config.frontend_url).write)
    maintenance = Maintenance(mailer, visitor_ttl=timedelta(seconds=config.session_max_seconds))
    notifications = Notifications(mailer, throttle)
    clients = _build_clients(config, client)
    spotify = _build_spotify(config, client, redis_cipher, token_cipher, throttle, notifications, clients)
    connections, way_in = spotify.connections, spotify.way_in
    passwords = Passwords(config.threads)
    email_changes = EmailChanges(notifications, connections, way_in)
    personal_access_tokens = PersonalAccessTokens(config.secret_key, notifications)
    return Services(
        config=config,
        redis=client,
        redis_cipher=redis_cipher,
        row_versions=RowVersions(client),
        token_cipher=token_cipher,
        accounts=clients.accounts,
        applications=spotify.applications,
        web_api=clients.web_api,
        rate_limiter=clients.limits.deployment.rate_limiter,
        response_cache=spotify.response_cache,
        gateway=spotify.gateway,
        connections=connections,
        authorization_flow=spotify.authorization_flow,
        app_registration=AppRegistration(
            config, token_cipher, clients.accounts, clients.accounts_bulkhead, connections, way_in
        ),
        throttle=throttle,
        hourly_counts=hourly_counts,
        tokens=spotify.tokens,
        mailer=mailer,
        maintenance=maintenance,
        scheduler=_build_scheduler(app, config, client, token_cipher, maintenance, mailer, spotify),
        notifications=notifications,
        passwords=passwords,
        authenticator=Authenticator(throttle, passwords, hourly_counts),
        jwt_issuer=_build_jwt_issuer(config),
        password_changes=PasswordChanges(passwords, notifications, connections, way_in),
        email_changes=email_changes,
        personal_access_tokens=personal_access_tokens,
        device_flow=_build_device_flow(config, client, redis_cipher, personal_access_tokens, throttle),
        user_accounts=UserAccounts(notifications, email_changes, connections),
    )


def _build_clients(config: Config, client: redis.Redis) -> _Clients:
    http_client = HttpClient(traceparent=trace_context.outgoing)
    limits = ClientLimitsRegistry(client, config)
    return _Clients(
        SpotifyAccounts(config, http_client),
        AccountsBulkhead(config.threads),
        SpotifyWebApi(config, http_client, limits),
        limits,
    )


def _build_spotify(
    config: Config,
    client: redis.Redis,
    redis_cipher: RedisCipher,
    token_cipher: TokenCipher,
    throttle: Throttle,
    notifications: Notifications,
    clients: _Clients,
) -> _Spotify:
    applications = Applications(config, token_cipher)
    pauses = ApplicationPauses(notifications.notify)
    tokens = _build_token_service(config, client, clients, applications, pauses, token_cipher)
    response_cache = ResponseCache(client)
    way_in = SpotifyWayIn(notifications.notify, is_enabled=config.spotify_sign_in)
    connections = Connections(tokens, applications, way_in, response_cache.drop)
    authorizations = AuthorizationStore(client, redis_cipher, token_cipher, throttle, config.secret_key)
    exchange = CodeExchange(
        authorizations,
        clients.accounts,
        clients.accounts_bulkhead,
        clients.web_api,
        clients.limits,
        throttle,
        pauses,
    )
    usable_connection = UsableConnection(tokens, applications)
    callbacks = CallbackHandler(
        authorizations,
        exchange,
        clients.accounts_bulkhead,
        connections,
        applications,
        usable_connection,
        SpotifySignIn(),
        config,
    )
    return _Spotify(
        applications=applications,
        tokens=tokens,
        response_cache=response_cache,
        gateway=_build_gateway(config, client, clients, tokens, response_cache),
        connections=connections,
        way_in=way_in,
        authorization_flow=AuthorizationFlow(
            authorizations, callbacks, clients.accounts, applications, usable_connection, config
        ),
        imported_profiles=ImportedProfiles(tokens, clients.web_api, response_cache),
    )


def _build_token_service(
    config: Config,
    client: redis.Redis,
    clients: _Clients,
    applications: Applications,
    pauses: ApplicationPauses,
    cipher: TokenCipher,
) -> TokenService:
    bulkhead = clients.accounts_bulkhead
    refresher = Refresher(
        clients.accounts, bulkhead, applications, pauses, RedisLocks(client), cipher, config.refresh_lead
    )
    threads = accounts_waiters(config.threads)
    refreshes: dict[ApplicationKind, SingleFlight[GrantSnapshot]] = {
        kind: SingleFlight(threads, f"refresh-{kind}") for kind in ApplicationKind
    }
    return TokenService(refresher, refreshes, bulkhead, applications, cipher, config.refresh_lead)


def _build_gateway(
    config: Config,
    client: redis.Redis,
    clients: _Clients,
    tokens: TokenService,
    response_cache: ResponseCache,
) -> Gateway:
    bulkhead = Bulkhead(web_api_slots(config.threads), WEB_API_QUEUE)
    poll_ttl = config.gateway_share_seconds
    return Gateway(client, tokens, clients.web_api, clients.limits, response_cache, bulkhead, poll_ttl)


def _build_scheduler(
    app: Flask,
    config: Config,
    client: redis.Redis,
    cipher: TokenCipher,
    maintenance: Maintenance,
    mailer: Mailer,
    spotify: _Spotify,
) -> Scheduler:
    return Scheduler(
        app,
        config,
        client,
        spotify.tokens.refresher,
        BatchClaims(cipher, spotify.applications, config),
        maintenance,
        mailer,
        spotify.imported_profiles.run,
    )


def _build_device_flow(
    config: Config,
    client: redis.Redis,
    cipher: RedisCipher,
    tokens: PersonalAccessTokens,
    throttle: Throttle,
) -> DeviceFlow:
    store = DeviceAuthorizationStore(client, cipher, config.secret_key)
    return DeviceFlow(store, tokens, throttle, config.frontend_url)


def _build_jwt_issuer(config: Config) -> "JwtIssuer | None":
    if not config.jwt_signing_keys:
        return None
    from app.auth.jwt_issuer import JwtIssuer  # PyJWT takes memory

    return JwtIssuer(config.jwt_signing_keys, config.jwt_audiences)
