"""Routes of the device authorization grant: two for the device, and two for the person."""

from typing import Any

from flask import request

from app.auth.devices.errors import OAuthError
from app.auth.devices.flow import GRANT_TYPE
from app.auth.devices.oauth_http import oauth_errors, read_form
from app.auth.devices.schemas import (
    START_FORM,
    TOKEN_FORM,
    DeviceAuthorizationOut,
    DeviceDecision,
    DeviceOut,
    DeviceTokenOut,
    OAuthErrorOut,
    describe_device,
)
from app.auth.personal_access_tokens import DEFAULT_LIFETIME
from app.errors import FreshSignInRequired, InvalidCredentials, TooManyAttempts, TooManyTokens
from app.services import services
from app.web.access import login_required, public, read_user, require_user
from app.web.api import Blueprint
from app.web.identity import loads_session
from app.web.problems import NotFound

blueprint = Blueprint("devices", __name__, description="Devices without a browser (RFC 8628)")


@blueprint.post("/api/oauth/device_authorization")
@public
@loads_session  # never: no cookie is read
@blueprint.doc(**START_FORM)
@blueprint.response(200, DeviceAuthorizationOut)
@blueprint.alt_response(400, schema=OAuthErrorOut)
@blueprint.problems(TooManyAttempts)
@oauth_errors
def start() -> dict[str, object]:
    """Start a device authorization.

    The device shows `user_code` and `verification_uri`, and polls `POST /api/oauth/token`. Errors have
    OAuth's own format. No cookie and no `X-Requested-With` are needed.
    """
    form = read_form(request, "client_name", "scope")
    return services().device_flow.start(
        form.get("client_name", ""), form.get("scope", ""), request.remote_addr or ""
    )


@blueprint.post("/api/oauth/token")
@public
@loads_session  # never: no cookie is read
@blueprint.doc(**TOKEN_FORM)
@blueprint.response(200, DeviceTokenOut)
@blueprint.alt_response(400, schema=OAuthErrorOut)
@oauth_errors
def token() -> dict[str, Any]:
    """Get the token of a device, once the person has approved it.

    Until then, the error is `authorization_pending`, or `slow_down` if the device polls more often than every
    `interval` seconds, which then grows by five. `access_denied`, `expired_token` and `invalid_grant` are
    final.
    """
    form = read_form(request, "grant_type", "device_code")
    if "grant_type" not in form:
        raise OAuthError("invalid_request", "The parameter grant_type is missing.")
    if form["grant_type"] != GRANT_TYPE:
        raise OAuthError("unsupported_grant_type", f"The only supported grant type is {GRANT_TYPE}.")
    if "device_code" not in form:
        raise OAuthError("invalid_request", "The parameter device_code is missing.")
    created = services().device_flow.redeem(form["device_code"])
    return {
        "access_token": created.token,
        "token_type": "Bearer",
        "expires_in": int(DEFAULT_LIFETIME.total_seconds()),
        "scope": created.row.rights,
    }


@blueprint.get("/api/user/devices/<string:user_code>")
@login_required
@blueprint.response(200, DeviceOut)
@blueprint.problems(TooManyAttempts)
def get(user_code: str) -> dict[str, Any]:
    """Return the device that shows this code, and the rights that it requests.

    From then on, no one else can look the code up or decide. The code may be in lower case, and without the
    hyphen.
    """
    found = services().device_flow.find(user_code, require_user())
    if found is None:
        raise NotFound
    return describe_device(found)


@blueprint.post("/api/user/devices/<string:user_code>")
@login_required
@blueprint.arguments(DeviceDecision)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts, TooManyTokens)
def decide(requested: dict[str, str], user_code: str) -> None:
    """Approve or deny a device, which is final.

    Approving needs `current_password`, as creating a token does. The device gets its token at its next poll.
    """
    user = read_user()
    pending = services().device_flow.find(user_code, user)
    if pending is None:
        raise NotFound
    approved = requested["decision"] == "approve"
    if approved:
        services().authenticator.confirm_owner(user, requested.get("current_password"))
    if not services().device_flow.decide(pending, user, approved=approved):
        raise NotFound
