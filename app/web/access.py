"""Who may call a route. Every view declares it with a decorator; one that does not responds with 500."""

import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from flask import Flask, current_app, g, request, session

from app.errors import NotSignedIn
from app.infra.database import reading
from app.models import User

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


def current_user() -> User | None:
    """Return the user that this session is signed in as. It is read once per request.

    A new password changes the user's `session_epoch`, which signs out all sessions from before.
    """
    if "user" not in g:
        user_id = session.get("user_id")
        with reading() as db:
            user = db.get(User, user_id) if user_id is not None else None
        if user is not None and (user.session_epoch != session.get("epoch") or user.disabled):
            user = None
        g.user = user  # only after the transaction has succeeded
    current: User | None = g.user
    return current


def require_user() -> User:
    """Return the signed-in user.

    Raises:
        NotSignedIn: No one is signed in, or the account has been deleted or disabled.
    """
    user = current_user()
    if user is None:
        raise NotSignedIn
    return user


def init_app(app: Flask) -> None:
    """Check every request before its view runs."""

    @app.before_request
    def check_access() -> None:
        if request.routing_exception is not None or request.method == "OPTIONS":
            return
        view = current_app.view_functions[request.endpoint or ""]
        access = getattr(view, "access", None)
        if access is None:
            raise RuntimeError(f"{request.endpoint} does not declare who may call it")
        if access is Access.SIGNED_IN and current_user() is None:
            log.info("access_denied")
            raise NotSignedIn
