"""The gateway behind `/api/spotify/v1/{path}`: the Web API on a person's behalf, without its troubles.

A read is shared with everybody who asks the same for this link (`shared_reads`), a write goes
through and drops what was shared. Either is sent with the link's token, and a token that Spotify
refuses is replaced once. The whole story, for those who write pages, is in `docs/gateway.md`.
"""

import time

from flask import Response
from werkzeug.datastructures import ResponseCacheControl
from werkzeug.http import parse_cache_control_header

from app.errors import (
    BacklineError,
    InsufficientScope,
    SpotifyRateLimited,
    SpotifyReauthorizationRequired,
    SpotifyUnavailable,
)
from app.infra.http_client import HttpResponse
from app.models import SpotifyUser
from app.resilience.bulkhead import BulkheadFull
from app.services import services
from app.spotify.clients.accounts import RateLimited
from app.spotify.clients.call import MIN_SECONDS, Call
from app.spotify.clients.web_api import CALL_SECONDS, WebApiTransportError
from app.spotify.gateway import metrics
from app.spotify.gateway.cache import MAX_TTL_SECONDS
from app.spotify.gateway.shared_reads import Fetch, SharedResponse
from app.spotify.tokens import service
from app.spotify.tokens.refresh import GrantEnded
from app.web.problems import problem_type
from app.web.security_headers import CONTENT_POLICY

# All of it: a token, the call, another token and the call once more. nginx waits for 20 s.
TOTAL_SECONDS = 15.0
# Headers of an answer that are passed on. Lower case.
_PASSED_ON = ("content-type", "content-language", "etag", "last-modified", "location", "retry-after")
# What a browser shows without running any of it. Anything else, and a body without a type, is sandboxed.
_INERT = ("application/json", "text/plain", "image/jpeg")
# How Spotify says that a permission is missing: https://developer.spotify.com/documentation/web-api/concepts/scopes
_MISSING_SCOPE = {401: "Permissions missing", 403: "Insufficient client scope"}


class GatewayBusy(SpotifyUnavailable):
    """Too many requests wait for Spotify already."""

    detail = "Too many calls are waiting for Spotify. Try again in a moment."
    retry_after = 1


def forward(link: SpotifyUser, call: Call, *, grant_id: str | None = None) -> Response:
    """Make the call for this link. Returns Spotify's answer, with how it was come by.

    With `grant_id`, only a token of that grant is used. A read is shared within the link's grant only.

    Raises:
        GrantEnded, SpotifyNotConnected, InsufficientScope, SpotifyRateLimited, SpotifyUnavailable,
        SpotifyMisconfigured
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        try:
            served = (_read if call.is_read else _write)(link, call, deadline, grant_id)
        except BulkheadFull:
            raise GatewayBusy from None
        _refuse(served.answer)
    except (BacklineError, GrantEnded) as error:
        metrics.count_request(call, _name(error))
        raise
    metrics.count_request(call, _outcome(served.answer), served.cache)
    return _response(served)


def _read(link: SpotifyUser, call: Call, deadline: float, grant_id: str | None) -> SharedResponse:
    return services().shared.get(
        link.id,
        # With the grant: a visitor must not read through another one. Ids of links are also issued again
        # after a backup is restored.
        f"{link.token.grant_id} {call.cache_key}",
        Fetch(
            lambda: _fetch(link.id, call, deadline, grant_id), lambda answer: _life(call, answer), deadline
        ),
    )


def _write(link: SpotifyUser, call: Call, deadline: float, grant_id: str | None) -> SharedResponse:
    with services().web_api_bulkhead.admit(link.id) as admission:
        services().web_api_bulkhead.acquire(admission, until=deadline - MIN_SECONDS)
        # Before as well: this process may die once Spotify has the call, or find Redis away afterwards.
        services().shared.drop(link.id)
        try:
            return SharedResponse(_fetch(link.id, call, deadline, grant_id), "miss")
        finally:
            services().shared.drop(link.id)  # also after no answer: it may have had its effect


def _fetch(link_id: int, call: Call, deadline: float, grant_id: str | None) -> HttpResponse:
    """Call Spotify with the link's token, and on a 401, in whatever wording, once more with another."""

    def left(reserved: float = 0) -> float:
        return max(1.0, deadline - time.monotonic() - reserved)

    def send(access_token: str) -> HttpResponse:
        return services().web_api.send(
            call, access_token, link_id=link_id, within=min(CALL_SECONDS, left()), deadline=deadline
        )

    try:
        # Of the time, a little is kept back for the call itself.
        wait_seconds = min(service.WAIT_SECONDS, left(3))
        token = service.access_token_for(link_id, wait_seconds=wait_seconds, grant_id=grant_id)
        answer = send(token.access_token)
        if answer.status == 401 and not _lacks_permission(answer) and left() > 2:
            token = service.replace_rejected(token, link_id, wait_seconds=left(2))
            service.require_grant(token, grant_id)
            answer = send(token.access_token)
    except RateLimited as error:
        raise SpotifyRateLimited(retry_after=error.retry_after) from error
    except WebApiTransportError as error:
        raise SpotifyUnavailable(retry_after=error.retry_after) from error
    return answer


def _life(call: Call, answer: HttpResponse) -> float:
    """How many seconds an answer is good for others of this link."""
    if answer.status in (401, 403):
        return 0  # about the permission, which may be given any moment
    if call.is_poll:
        return services().config.gateway_share_seconds
    if answer.status != 200:
        return 0
    control = parse_cache_control_header(answer.headers.get("cache-control"), cls=ResponseCacheControl)
    if control.no_store or control.no_cache:
        return 0
    return min(max(control.max_age or 0, 0), MAX_TTL_SECONDS)


def _lacks_permission(answer: HttpResponse) -> bool:
    """Whether the body proves that a scope is missing. Other 401s and 403s are passed on as they came."""
    message = _MISSING_SCOPE.get(answer.status)
    if message is None:
        return False
    error = answer.json_object().get("error")
    return isinstance(error, dict) and error.get("message") == message


def _refuse(answer: HttpResponse) -> None:
    """Raise what is said in the place of the few answers that are not passed on."""
    if _lacks_permission(answer):
        raise InsufficientScope("Spotify was connected without the permission that this call needs.")
    if 300 <= answer.status < 400 and answer.status != 304:
        raise SpotifyUnavailable("Spotify redirects, which this gateway does not follow.")


def _name(error: Exception) -> str:
    """How a request counts that was not answered by Spotify."""
    if isinstance(error, GatewayBusy):
        return "no-place"
    kind = type(error) if isinstance(error, BacklineError) else SpotifyReauthorizationRequired
    return problem_type(kind).slug


def _outcome(answer: HttpResponse) -> str:
    """How an answer counts. The owner's Premium and the allowlist are refused in plain text."""
    if answer.status == 403 and not answer.json_object():
        return "403-text"
    return str(answer.status)


def _response(served: SharedResponse) -> Response:
    answer = served.answer
    response = Response(answer.body, answer.status)
    response.headers.pop("Content-Type")
    for name in _PASSED_ON:
        value = " ".join(answer.headers.get(name, "").split())  # it may be folded
        if value and value.isprintable():  # gunicorn would refuse another one, and with it the answer
            response.headers[name.title()] = value
    # Browsers take the last of several types: `application/json; charset=utf-8, text/html` is HTML.
    is_inert = response.mimetype in _INERT and "," not in response.headers["Content-Type"]
    if answer.body and not is_inert:
        # Opened as a page, it must not run scripts as a page of this API.
        response.headers["Content-Security-Policy"] = f"{CONTENT_POLICY}; sandbox"
    response.headers["X-Cache"] = served.cache
    response.headers["Age"] = str(served.age)
    return response
