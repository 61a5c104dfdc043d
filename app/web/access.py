"""Who may call a route. Every view declares it with a decorator; one that does not responds with 500.

A bearer token may call only the views that accept it (`accepts_bearer`), with one of the rights they name.
"""

import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from flask import Flask
from flask.globals import request_ctx

from app.errors import InsufficientRights, NotSignedIn
from app.infra.database import reading
from app.models import Right, User
from app.models.snapshots import PersonalTokenSnapshot, UserSnapshot
from app.web import bearer, identity
from app.web.csrf import SAFE_METHODS
from app.web.paths import is_api

log = logging.getLogger(__name__)

View = TypeVar("View", bound=Callable[..., object])


class Access(Enum):
    """Who may call a view."""

    ANYONE = "anyone"
    SIGNED_IN = "signed in"


def public(view: View) -> View:
    """Declare that anyone may call this view."""
    view.access = Access.ANYONE  # type: ignore[attr-defined]
    return view


def login_required(view: View) -> View:
    """Declare that only signed-in people may call this view. Others get 401."""
    view.access = Access.SIGNED_IN  # type: ignore[attr-defined]
    return view


def accepts_bearer(*rights: Right, to_write: Right | None = None) -> Callable[[View], View]:
    """Declare that a bearer token with one of these rights may call this view.

    `to_write` is the right for requests that change something, if the view handles those too.
    """

    def decorate(view: View) -> View:
        view.rights = frozenset(rights)  # type: ignore[attr-defined]
        view.rights_to_write = frozenset() if to_write is None else frozenset({to_write})  # type: ignore[attr-defined]
        return view

    return decorate


def current_user() -> UserSnapshot | None:
    """Return the user that this session is signed in as, or whose bearer token the request presents.

    A new password changes the user's `session_epoch`, which signs out all sessions from before.
    """
    if identity.current_token() is not None:
        snapshot = identity.current_snapshot()
        return snapshot.user if snapshot is not None else None
    session = identity.current_session()
    if session.get("user_id") is None:
        return None
    snapshot = identity.current_snapshot()
    user = snapshot.user if snapshot is not None else None
    if user is None or user.session_epoch != session.get("epoch") or user.disabled:
        return None
    return user


def require_user() -> UserSnapshot:
    """Return the signed-in user.

    Raises:
        NotSignedIn: No one is signed in, or the account has been deleted or disabled.
    """
    user = current_user()
    if user is None:
        raise NotSignedIn
    return user


def read_user() -> User:
    """Read the row of the signed-in user, which also has what is only needed for changes.

    Raises:
        NotSignedIn: No one is signed in, or the account has been deleted or disabled.
    """
    user = require_user()
    with reading() as db:
        row = db.get(User, user.id)
    if row is None or row.session_epoch != user.session_epoch or row.disabled:
        raise NotSignedIn
    return row


def rights_for(view: object, method: str) -> frozenset[Right]:
    """Return the rights, one of which a bearer token needs to call a view. Empty if it accepts no token."""
    name = "rights" if method in SAFE_METHODS else "rights_to_write"
    rights: frozenset[Right] = getattr(view, name, frozenset())
    return rights


def has_right(token: PersonalTokenSnapshot | None) -> bool:
    """Return whether a bearer token has a right that the request needs, or there is no token."""
    return token is None or not _needed_rights().isdisjoint(token.rights.split())


def require_right() -> None:
    """Require that the request's bearer token, if it has one, is valid and may be used for this.

    Raises:
        InvalidBearerToken: It is malformed, unknown, expired, or ended.
        InsufficientRights: It has no right that the request needs, or the view accepts no token.
        TooManyAttempts: It is unknown, like many others from this address.
    """
    if not bearer.replaces_cookie(request_ctx.request):
        return
    tokens: bearer.BearerTokens = request_ctx.app.extensions["bearer_tokens"]
    token = identity.current_token()
    if token is None:
        tokens.reject(identity.token_state())
    if not has_right(token):
        bearer.count("insufficient-rights")
        needed = " ".join(_needed_rights())
        raise InsufficientRights(f"This needs the right {needed}." if needed else None)
    bearer.count("ok")
    tokens.record_use(token.id)


def init_app(app: Flask) -> None:
    """Check every request before its view runs."""

    @app.before_request
    def check_access() -> None:
        request = request_ctx.request
        if request.url_rule is None or request.method == "OPTIONS":
            return
        endpoint = request.url_rule.endpoint
        view = app.view_functions[endpoint]
        access = getattr(view, "access", None)
        if access is None:
            raise RuntimeError(f"{endpoint} does not declare who may call it")
        if bearer.replaces_cookie(request) and is_api(request.environ):
            _check_token(view)
        if access is Access.SIGNED_IN and current_user() is None:
            log.info("access_denied")
            raise NotSignedIn


def _check_token(view: object) -> None:
    """Look up and check a bearer token, unless the view does both itself."""
    if getattr(view, "loads_session", False) and hasattr(view, "rights"):
        if bearer.credential(request_ctx.request) is None:
            tokens: bearer.BearerTokens = request_ctx.app.extensions["bearer_tokens"]
            tokens.reject(bearer.TokenState.MISSING)
        return
    if identity.current_session().identity is None:
        identity.load()
    require_right()


def _needed_rights() -> frozenset[Right]:
    request = request_ctx.request
    return rights_for(request_ctx.app.view_functions[request.endpoint or ""], request.method)
