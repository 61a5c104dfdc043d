"""Backline: the backend for a single-page app on Spotify.

A request's way: `sessions` opens the session, `origin` turns away other sites, `auth.guard` asks
who may call, a blueprint's route does the deed. What needs Spotify goes through
`spotify.tokens.access_token_for`, and every error through `problems`.
"""

import re

from flask import Flask
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from app import cli
from app.auth.routes import blueprint as auth
from app.infra import database, logs
from app.infra.encryption import TokenCipher
from app.infra.http_client import HttpClient
from app.infra.redis_cipher import RedisCipher
from app.infra.redis_client import redis_client
from app.mail.mailer import Mailer
from app.resilience.bulkhead import Bulkhead
from app.resilience.redis_lock import RedisLocks
from app.resilience.single_flight import SingleFlight
from app.services import Services
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.capacity import WEB_API_QUEUE, accounts_waiters, web_api_slots
from app.spotify.clients.metrics import RateLimitCollector
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from app.spotify.clients.web_api import SpotifyWebApi
from app.spotify.gateway.shared_reads import SharedReads
from app.spotify.routes import blueprint as spotify
from app.user import emails
from app.user.routes import blueprint as user
from app.web import access, csrf, docs, error_handlers, error_middleware, health, security_headers, sessions
from app.web.api import MAX_BODY_BYTES, Api
from app.web.client_address import ClientAddress
from app.web.throttle import Throttle
from config import Config


def create_app(config: Config) -> Flask:
    """Build the application. Opens no connection."""
    app = Flask(__name__, static_folder=None)
    app.config.update(
        SECRET_KEY=config.secret_key,
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        # Health probes use this machine's own names, not the public ones.
        TRUSTED_HOSTS=[*config.trusted_hosts, "127.0.0.1", "localhost"] if config.trusted_hosts else None,
        # An error is answered as a problem document in development too; the traceback is in the log.
        PROPAGATE_EXCEPTIONS=False,
        API_TITLE="Backline",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={"info": {"description": docs.DESCRIPTION}},
    )
    # `//` in a path is another path, not a reason to redirect to whatever the Host header says.
    app.url_map.merge_slashes = False
    if config.trusted_proxies:
        hops = config.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=0, x_proto=hops, x_host=0, x_port=0)  # type: ignore[method-assign]
    app.wsgi_app = ClientAddress(app.wsgi_app, config.trusted_proxies)  # type: ignore[method-assign]
    app.json.sort_keys = False  # type: ignore[attr-defined]  # answers read in the order of their schema
    store = redis_client(config.redis_url)
    redis_cipher = RedisCipher(config.secret_key)
    outbound, rate_limiter = HttpClient(), SpotifyRateLimiter(store, config)
    bulkhead = Bulkhead(web_api_slots(config.threads), WEB_API_QUEUE)
    app.extensions["backline"] = Services(
        config=config,
        redis=store,
        redis_cipher=redis_cipher,
        token_cipher=TokenCipher(config.token_encryption_keys),
        locks=RedisLocks(store),
        accounts=SpotifyAccounts(config, outbound),
        accounts_bulkhead=AccountsBulkhead(config.threads),
        web_api=SpotifyWebApi(config, outbound, rate_limiter),
        rate_limiter=rate_limiter,
        web_api_bulkhead=bulkhead,
        throttle=Throttle(store, config.secret_key),
        shared=SharedReads(store, bulkhead),
        refreshes=SingleFlight(accounts_waiters(config.threads), "refresh"),
        mailer=Mailer(config, emails.write),
    )
    database.init_app(app, config)

    # In the order in which a request meets them.
    logs.init_app(app)
    sessions.init_app(app, config, store, redis_cipher)
    csrf.init_app(app, config)
    access.init_app(app)
    security_headers.init_app(app, config)
    CORS(
        app,
        resources=r"/api/*",
        # Patterns of our own making: Flask-CORS takes any text with a bracket in it, such as [::1], for one.
        origins=[re.compile(rf"{re.escape(origin)}\Z") for origin in config.cors_origins],
        supports_credentials=True,
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Content-Type", "X-Requested-With", *config.cors_allow_headers],
        expose_headers=["Age", "Location", "Retry-After", "X-Cache", "X-Request-ID"],
        max_age=3600,
        always_send=False,
    )
    error_handlers.init_app(app)
    error_middleware.init_app(app)
    api = Api(app)
    for blueprint in (auth, user, spotify):
        api.register_blueprint(blueprint)
    docs.init_app(app, api)
    health.init_app(app, store, [RateLimitCollector(rate_limiter)])
    cli.init_app(app)
    return app
