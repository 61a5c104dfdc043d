"""Builds the application: its services, and the hooks that every request passes through.

docs/architecture.md describes the packages.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import redis
from flask import Flask
from flask.cli import AppGroup
from werkzeug.middleware.proxy_fix import ProxyFix

from app.auth.devices.flow import DeviceFlow
from app.auth.devices.routes import blueprint as devices
from app.auth.devices.store import DeviceAuthorizationStore
from app.auth.email_change import EmailChanges
from app.auth.login import Authenticator
from app.auth.notifications import Notifications
from app.auth.password_change import PasswordChanges
from app.auth.passwords import Passwords
from app.auth.personal_access_tokens import PersonalAccessTokens
from app.auth.routes import blueprint as auth
from app.auth.spotify_sign_in import SpotifySignIn
from app.imports.profiles import ImportedProfiles
from app.infra import database, pool_metrics, row_versions
from app.infra.cli_command import LazyGroup
from app.infra.encryption import TokenCipher
from app.infra.hourly_counts import HourlyCounts
from app.infra.http_client import HttpClient
from app.infra.redis_cipher import RedisCipher
from app.infra.redis_client import redis_client
from app.infra.row_versions import RowVersions
from app.mail.mailer import Mailer
from app.mail.metrics import MailCollector
from app.mail.transport import create_transport
from app.operator import routes as operator
from app.operator.overview import OverviewReader
from app.resilience.bulkhead import Bulkhead
from app.resilience.redis_lock import RedisLocks
from app.resilience.single_flight import SingleFlight
from app.services import Services
from app.spotify.app_registration.registration import AppRegistration
from app.spotify.app_registration.routes import blueprint as spotify_app
from app.spotify.applications.lookup import Applications
from app.spotify.applications.pauses import ApplicationPauses
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import ApplicationKind
from app.spotify.clients.capacity import WEB_API_QUEUE, accounts_waiters, web_api_slots
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.metrics import RateLimitCollector
from app.spotify.clients.web_api import SpotifyWebApi
from app.spotify.connections import Connections
from app.spotify.gateway.cache import ResponseCache
from app.spotify.gateway.proxy import Gateway
from app.spotify.oauth.exchange import CodeExchange
from app.spotify.oauth.flow import AuthorizationFlow
from app.spotify.oauth.state import AuthorizationStore
from app.spotify.routes import blueprint as spotify
from app.spotify.tokens.batch_claims import BatchClaims
from app.spotify.tokens.maintenance import Maintenance
from app.spotify.tokens.metrics import ConnectionCollector
from app.spotify.tokens.refresh import GrantSnapshot, Refresher
from app.spotify.tokens.scheduler import Scheduler
from app.spotify.tokens.service import TokenService
from app.spotify.ways_in import SpotifyWayIn
from app.user.account import UserAccounts
from app.user.emails import EmailWriter
from app.user.routes import blueprint as user
from app.web import (
    access,
    cors,
    csrf,
    docs,
    error_handlers,
    health,
    identity,
    jwks,
    request_log,
    security_headers,
    sessions,
    trace_context,
)
from app.web.api import MAX_BODY_BYTES, Api
from app.web.arrival_report import ArrivalReport
from app.web.bearer import BearerTokens
from app.web.client_address import ClientAddress
from app.web.error_middleware import ErrorMiddleware
from app.web.sync_flask import SyncFlask
from app.web.throttle import Throttle
from config import Config

if TYPE_CHECKING:
    from app.auth.jwt_issuer import JwtIssuer


def create_app(config: Config) -> Flask:
    """Build the application. Opens no connection."""
    app = SyncFlask(__package__, static_folder=None)
    _configure(app, config)
    services = _build_services(app, config)
    app.extensions["backline"] = services
    database.init_app(app, config)
    row_versions.init_app(app, services.row_versions)

    # The order of requests. Responses pass in reverse order.
    request_log.init_app(app)
    sessions.init_app(app, config, services.redis, services.redis_cipher)
    csrf.init_app(app, config)
    identity.init_app(app, services.redis, BearerTokens(config.secret_key, services.throttle))
    access.init_app(app)
    cors.init_app(app, config)
    security_headers.init_app(app, config)
    app.after_request(sessions.save)  # last, to run first: it may replace the response

    error_handlers.init_app(app)
    api = Api(app)
    for blueprint in (auth, devices, user, spotify, spotify_app):
        api.register_blueprint(blueprint)
    docs.init_app(app, api, config)
    jwks.init_app(app, services.jwt_issuer.public_keys if services.jwt_issuer is not None else [])
    health.init_app(
        app,
        services.redis,
        [RateLimitCollector(services.rate_limiter)],
        [ConnectionCollector(), MailCollector()],
        _metrics_sampler(app, services),
    )
    operator.init_app(app, OverviewReader(services.hourly_counts, services.rate_limiter))
    app.cli = LazyGroup(_add_commands)
    return app


def _metrics_sampler(app: Flask, services: Services) -> Callable[[], None]:
    with app.app_context():
        engine = database.db.engine

    def sample() -> None:
        pool_metrics.sample(engine, services.redis)
        services.web_api.sample_metrics()

    return sample


def _add_commands(group: AppGroup) -> None:
    from app import cli

    cli.add_commands(group)


def _configure(app: Flask, config: Config) -> None:
    app.config.update(
        SECRET_KEY=config.secret_key,
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        # Health probes use this machine's own names, not the public ones.
        TRUSTED_HOSTS=[*config.trusted_hosts, "127.0.0.1", "localhost"] if config.trusted_hosts else None,
        PROPAGATE_EXCEPTIONS=True,  # to ErrorMiddleware
        NAMES_DEPENDENCIES=config.app_env == "development",  # in responses with 503
        API_TITLE="Backline",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={"info": {"description": docs.DESCRIPTION}},
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # keep the order of the schemas
    # Do not redirect paths with `//`: the target would contain the Host header of the request.
    app.url_map.merge_slashes = False
    app.wsgi_app = ArrivalReport(app.wsgi_app, config.secret_key)  # type: ignore[method-assign]
    if config.trusted_proxies:
        hops = config.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=0, x_proto=hops, x_host=0, x_port=0)  # type: ignore[method-assign]
    app.wsgi_app = ClientAddress(app.wsgi_app, config.trusted_proxies)  # type: ignore[method-assign]
    app.wsgi_app = ErrorMiddleware(app.wsgi_app)  # type: ignore[method-assign]


def _build_services(app: Flask, config: Config) -> Services:
    client = redis_client(config.redis_url)
    redis_cipher, token_cipher = RedisCipher(config.secret_key), TokenCipher(config.token_encryption_keys)
    response_cache, hourly_counts = ResponseCache(client), HourlyCounts(client)
    throttle, sign_in = Throttle(client, config.secret_key, hourly_counts), SpotifySignIn()
    accounts, bulkhead, limits, web_api = _build_spotify_clients(config, client)
    mailer, maintenance = _build_mailer(app, config)
    notifications, applications = Notifications(mailer, throttle), Applications(config, token_cipher)
    pauses, claims = ApplicationPauses(notifications.notify), BatchClaims(token_cipher, applications, config)
    tokens = _build_token_service(config, client, accounts, bulkhead, applications, pauses, token_cipher)
    imported, way_in = ImportedProfiles(tokens, web_api, response_cache), SpotifyWayIn(notifications.notify)
    connections = Connections(tokens, applications, way_in, response_cache.drop)
    authorizations = AuthorizationStore(client, redis_cipher, token_cipher, throttle, config.secret_key)
    exchange = CodeExchange(authorizations, accounts, bulkhead, web_api, limits, throttle, pauses)
    passwords, email_changes = Passwords(config.threads), EmailChanges(notifications, connections, way_in)
    personal_access_tokens = PersonalAccessTokens(config.secret_key, notifications)
    return Services(
        config=config,
        redis=client,
        redis_cipher=redis_cipher,
        row_versions=RowVersions(client),
        token_cipher=token_cipher,
        accounts=accounts,
        accounts_bulkhead=bulkhead,
        applications=applications,
        web_api=web_api,
        rate_limiter=limits.deployment.rate_limiter,
        throttle=throttle,
        hourly_counts=hourly_counts,
        response_cache=response_cache,
        gateway=_build_gateway(config, client, tokens, web_api, limits, response_cache),
        connections=connections,
        authorization_flow=AuthorizationFlow(
            authorizations, exchange, accounts, bulkhead, tokens, connections, applications, config, sign_in
        ),
        app_registration=AppRegistration(config, token_cipher, accounts, bulkhead, connections, way_in),
        tokens=tokens,
        mailer=mailer,
        maintenance=maintenance,
        scheduler=Scheduler(app, config, client, tokens.refresher, claims, maintenance, mailer, imported.run),
        notifications=notifications,
        passwords=passwords,
        authenticator=Authenticator(throttle, passwords, hourly_counts),
        jwt_issuer=_jwt_issuer(config),
        password_changes=PasswordChanges(passwords, notifications, connections, way_in),
        email_changes=email_changes,
        personal_access_tokens=personal_access_tokens,
        device_flow=_build_device_flow(config, client, redis_cipher, personal_access_tokens, throttle),
        user_accounts=UserAccounts(notifications, email_changes, connections),
    )


def _build_spotify_clients(
    config: Config, client: redis.Redis
) -> tuple[SpotifyAccounts, AccountsBulkhead, ClientLimitsRegistry, SpotifyWebApi]:
    http_client = HttpClient(traceparent=trace_context.outgoing)
    limits = ClientLimitsRegistry(client, config)
    web_api = SpotifyWebApi(config, http_client, limits)
    return SpotifyAccounts(config, http_client), AccountsBulkhead(config.threads), limits, web_api


def _build_mailer(app: Flask, config: Config) -> tuple[Mailer, Maintenance]:
    mailer = Mailer(app, create_transport(config), EmailWriter(config.frontend_url).write)
    return mailer, Maintenance(mailer, visitor_ttl=timedelta(seconds=config.session_max_seconds))


def _build_device_flow(
    config: Config,
    client: redis.Redis,
    cipher: RedisCipher,
    tokens: PersonalAccessTokens,
    throttle: Throttle,
) -> DeviceFlow:
    store = DeviceAuthorizationStore(client, cipher, config.secret_key)
    return DeviceFlow(store, tokens, throttle, config.frontend_url)


def _build_token_service(
    config: Config,
    client: redis.Redis,
    accounts: SpotifyAccounts,
    bulkhead: AccountsBulkhead,
    applications: Applications,
    pauses: ApplicationPauses,
    cipher: TokenCipher,
) -> TokenService:
    refresher = Refresher(
        accounts, bulkhead, applications, pauses, RedisLocks(client), cipher, config.refresh_lead
    )
    threads = accounts_waiters(config.threads)
    refreshes: dict[ApplicationKind, SingleFlight[GrantSnapshot]] = {
        kind: SingleFlight(threads, f"refresh-{kind}") for kind in ApplicationKind
    }
    return TokenService(refresher, refreshes, bulkhead, applications, cipher, config.refresh_lead)


def _build_gateway(
    config: Config,
    client: redis.Redis,
    tokens: TokenService,
    web_api: SpotifyWebApi,
    limits: ClientLimitsRegistry,
    response_cache: ResponseCache,
) -> Gateway:
    bulkhead = Bulkhead(web_api_slots(config.threads), WEB_API_QUEUE)
    return Gateway(client, tokens, web_api, limits, response_cache, bulkhead, config.gateway_share_seconds)


def _jwt_issuer(config: Config) -> "JwtIssuer | None":
    if not config.jwt_signing_keys:
        return None
    from app.auth.jwt_issuer import JwtIssuer  # PyJWT takes memory

    return JwtIssuer(config.jwt_signing_keys, config.jwt_audiences)
