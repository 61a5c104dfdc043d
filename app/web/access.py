"""Who may call a route. Every view declares it with a decorator; one that does not responds with 500."""

import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from flask import Flask
from flask.globals import request_ctx

from app.errors import NotSignedIn
from app.infra.database import reading
from app.models import User
from app.models.snapshots import UserSnapshot
from app.web import identity

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


def current_user() -> UserSnapshot | None:
    """Return the user that this session is signed in as.

    A new password changes the user's `session_epoch`, which signs out all sessions from before.
    """
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


def init_app(app: Flask) -> None:
    """Check every request before its view runs."""

    @app.before_request
    def check_access() -> None:
        request = request_ctx.request
        if request.url_rule is None or request.method == "OPTIONS":
            return
        endpoint = request.url_rule.endpoint
        access = getattr(app.view_functions[endpoint], "access", None)
        if access is None:
            raise RuntimeError(f"{endpoint} does not declare who may call it")
        if access is Access.SIGNED_IN and current_user() is None:
            log.info("access_denied")
            raise NotSignedIn
