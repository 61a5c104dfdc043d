"""Builds the application: the hooks that every request passes through, and the routes.

docs/architecture.md describes the packages.
"""

from collections.abc import Callable

from flask import Flask
from flask.cli import AppGroup
from werkzeug.middleware.proxy_fix import ProxyFix

from app.auth.devices.routes import blueprint as devices
from app.auth.routes import blueprint as auth
from app.infra import database, pool_metrics, row_versions
from app.infra.cli_command import LazyGroup
from app.mail.metrics import MailCollector
from app.operator import routes as operator
from app.operator.overview import OverviewReader
from app.services import Services
from app.spotify.app_registration.routes import blueprint as spotify_app
from app.spotify.clients.metrics import RateLimitCollector
from app.spotify.routes import blueprint as spotify
from app.spotify.tokens.metrics import ConnectionCollector
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
)
from app.web.api import MAX_BODY_BYTES, Api
from app.web.arrival_report import ArrivalReport
from app.web.bearer import BearerTokens
from app.web.client_address import ClientAddress
from app.web.error_middleware import ErrorMiddleware
from app.web.sync_flask import SyncFlask
from app.wiring import build_services
from config import Config


def create_app(config: Config) -> Flask:
    """Build the application. Opens no connection."""
    app = SyncFlask(__package__, static_folder=None)
    _configure(app, config)
    services = build_services(app, config)
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
    has_application = services.applications.deployment is not None
    health.init_app(
        app,
        services.redis,
        [RateLimitCollector(services.rate_limiter)],
        [ConnectionCollector(has_application=has_application), MailCollector()],
        _metrics_sampler(app, services),
    )
    operator.init_app(
        app, OverviewReader(services.hourly_counts, services.rate_limiter, has_application=has_application)
    )
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
