"""The authorization flow over HTTP: checks requests, and responds in JSON or with redirects."""

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from app.errors import BacklineError, SpotifyAccessDenied, SpotifyStateMismatch, ValidationError
from app.models import SpotifyUser
from app.spotify.oauth.flow import AuthorizationFlow
from app.spotify.oauth.request import AuthorizationRequired, AuthorizeRequest, Connected
from app.spotify.oauth.return_to import is_return_to, without_reserved
from app.spotify.schemas import AuthorizeOut, describe
from app.web import csrf, identity
from app.web.api import encode_json, is_navigation, json_response
from app.web.error_handlers import known_error, log_failure
from app.web.previews import PreviewRejected, reject_preview
from app.web.problems import CrossSiteRequest, problem_type
from app.web.validation import NO_INTENT, NOT_A_PAGE, OPTIONAL_SCOPES, REPEATED
from config import Config

log = logging.getLogger(__name__)

_AUTHORIZE = AuthorizeOut()


def respond(flow: AuthorizationFlow, config: Config, query: AuthorizeRequest) -> dict[str, Any] | Response:
    """Respond to a request to connect Spotify, or to a callback.

    Raises:
        BacklineError: See `AuthorizationFlow.authorize`. A browser is redirected to the app instead.
    """
    try:
        return _respond(flow, config, query)
    except Exception as error:
        known = known_error(error)
        if query.is_callback:
            _log_rejection(known)
        if not is_navigation() or isinstance(known, CrossSiteRequest | PreviewRejected):
            raise
        if known is not error:
            log_failure(error)
        # The app can explain to the person what went wrong. A page of JSON cannot.
        result = "denied" if isinstance(known, SpotifyAccessDenied) else f"error-{_slug(known)}"
        return _redirect_to_frontend(config, result, known.members.get("return_to"))


def _respond(flow: AuthorizationFlow, config: Config, query: AuthorizeRequest) -> dict[str, Any] | Response:
    reject_preview(is_callback=query.is_callback)
    identity.load()
    query = _validated(query, config)
    result = flow.authorize(query)
    if isinstance(result, AuthorizationRequired):
        csrf.require_same_site_start(config)
        url = flow.start(query.scopes, query.return_to, signs_in=query.signs_in)
        if is_navigation():
            return redirect(url, HTTPStatus.FOUND)
        reason = {"reason": "reauthorization_required"} if result.grant_ended else {}
        return {"status": "authorization_required", "authorize_url": url, **reason}
    if result.callback_ignored:
        _log_rejection(SpotifyStateMismatch())
    if is_navigation():
        return _redirect_to_frontend(config, "connected", result.return_to)
    return _describe_connected(result)


def _validated(query: AuthorizeRequest, config: Config) -> AuthorizeRequest:
    """Return a request whose parameters are valid. Those of the app are ignored in a callback.

    Raises:
        ValidationError: A parameter is repeated, a scope or the intent not allowed, or `return_to` no page of
            the app.
    """
    errors = {name: [REPEATED] for name in query.repeated}
    if not query.is_callback and not errors:
        allowed = {*config.spotify_scopes, *config.spotify_optional_scopes}
        if not allowed.issuperset(query.scopes):
            errors["scope"] = [OPTIONAL_SCOPES]
        if query.return_to is not None and not is_return_to(query.return_to):
            errors["return_to"] = [NOT_A_PAGE]
        if query.intent is not None and not (query.signs_in and config.spotify_sign_in):
            errors["intent"] = [NO_INTENT]
    if errors:
        raise ValidationError(errors=errors)
    return_to = None if query.return_to is None else without_reserved(query.return_to)
    return replace(query, return_to=return_to)


def _describe_connected(result: Connected) -> Response:
    spotify_user = result.spotify_user
    returning = {} if result.return_to is None else {"return_to": result.return_to}

    def encode() -> bytes:
        connected = {"status": "connected", "spotify": describe(spotify_user), **returning}
        return encode_json(_AUTHORIZE, connected)

    if returning or isinstance(spotify_user, SpotifyUser):  # one that has just been stored
        return json_response(encode())
    return json_response(identity.remembered_body("connected", encode))


def _log_rejection(error: BacklineError) -> None:
    log.info("spotify_callback_rejected", extra={"reason": _slug(error)})


def _redirect_to_frontend(config: Config, result: str, return_to: object = None) -> Response:
    """Redirect the browser to a page of the app with one of a fixed set of results.

    Nothing else comes from the request but `return_to`, which `is_return_to` has accepted.
    """
    page = urlsplit(config.frontend_url)
    if isinstance(return_to, str):
        path, _, query = return_to.partition("?")
        page = page._replace(path=path, query=query, fragment="")
    query = "&".join(filter(None, [page.query, urlencode({"spotify": result})]))
    return redirect(urlunsplit(page._replace(query=query)), HTTPStatus.SEE_OTHER)


def _slug(error: BacklineError) -> str:
    return problem_type(type(error)).slug
