"""Who may call a route. Every view says so with one of these; a view that does not is refused."""

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
    ANYONE = "anyone"
    SIGNED_IN = "signed in"


def public(view: View) -> View:
    """Anybody may call this, signed in or not."""
    view.access = Access.ANYONE  # type: ignore[attr-defined]
    return view


def login_required(view: View) -> View:
    """Only with an account; others get 401."""
    view.access = Access.SIGNED_IN  # type: ignore[attr-defined]
    return view


def current_user() -> User | None:
    """The account this session is signed in to, read once per request.

    A session from before the account's last new password is signed in to nothing.
    """
    if "user" not in g:
        user_id = session.get("user_id")
        with reading() as db:
            user = db.get(User, user_id) if user_id is not None else None
        if user is not None and (user.session_epoch != session.get("epoch") or user.disabled):
            user = None
        g.user = user  # only now: one whose transaction failed could not be looked at any more
    found: User | None = g.user
    return found


def require_user() -> User:
    """The signed-in account.

    Raises:
        NotSignedIn: there is none, or it has been deleted since.
    """
    user = current_user()
    if user is None:
        raise NotSignedIn
    return user


def init_app(app: Flask) -> None:
    @app.before_request
    def check_access() -> None:
        if request.routing_exception is not None or request.method == "OPTIONS":
            return
        view = current_app.view_functions[request.endpoint or ""]
        access = getattr(view, "access", None)
        if access is None:
            raise RuntimeError(f"{request.endpoint} does not say who may call it")
        if access is Access.SIGNED_IN and current_user() is None:
            log.info("access_refused")
            raise NotSignedIn
