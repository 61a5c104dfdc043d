"""Request and response bodies of the device authorization grant."""

from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.auth.devices.flow import GRANT_TYPE, MAX_CLIENT_NAME_LENGTH, format_user_code
from app.auth.devices.oauth_http import FORM
from app.auth.devices.store import DeviceAuthorization
from app.auth.schemas import current_password
from app.models import Right
from app.web.api import Timestamp
from app.web.validation import Schema, Text

_RIGHTS = " ".join(Right)


def _form(**properties: dict[str, Any]) -> dict[str, Any]:
    """Describe a form body for the OpenAPI document. All of its parameters are required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}


START_FORM = _form(
    client_name={
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_CLIENT_NAME_LENGTH,
        "description": "What the person sees; also the name of the token",
        "example": "my-cli",
    },
    scope={"type": "string", "description": f"One or more of: {_RIGHTS}", "example": "spotify:read"},
)
TOKEN_FORM = _form(
    grant_type={"type": "string", "enum": [GRANT_TYPE], "example": GRANT_TYPE},
    device_code={"type": "string", "example": "the device_code of POST /api/oauth/device_authorization"},
)


class DeviceAuthorizationOut(ma.Schema):
    """What a device shows, and polls with (RFC 8628 section 3.2)."""

    device_code = ma.fields.String(required=True, metadata={"description": "For polling; secret"})
    user_code = ma.fields.String(required=True, metadata={"example": "WDJB-MJHT"})
    verification_uri = ma.fields.String(required=True, metadata={"format": "uri"})
    verification_uri_complete = ma.fields.String(
        required=True, metadata={"format": "uri", "description": "For a QR code or a link"}
    )
    expires_in = ma.fields.Integer(required=True, metadata={"description": "In seconds"})
    interval = ma.fields.Integer(
        required=True, metadata={"description": "The minimum number of seconds between two polls"}
    )


class DeviceTokenOut(ma.Schema):
    """A personal access token, which is shown only here (RFC 6749 section 5.1)."""

    access_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True, metadata={"enum": ["Bearer"]})
    expires_in = ma.fields.Integer(required=True, metadata={"description": "In seconds"})
    scope = ma.fields.String(required=True)


class OAuthErrorOut(ma.Schema):
    """An error in OAuth's own format (RFC 6749 section 5.2)."""

    error = ma.fields.String(required=True, metadata={"example": "authorization_pending"})
    error_description = ma.fields.String(required=True)


class DeviceOut(ma.Schema):
    """A device that asks for a token. Its name is not verified."""

    user_code = ma.fields.String(required=True, metadata={"example": "WDJB-MJHT"})
    client_name = ma.fields.String(
        required=True, metadata={"description": "Chosen by the client; unverified"}
    )
    rights = ma.fields.List(ma.fields.String(validate=validate.OneOf(list(Right))), required=True)
    ip = ma.fields.String(required=True, metadata={"description": "The address that started this"})
    created_at = Timestamp(required=True)
    expires_at = Timestamp(required=True)


class DeviceDecision(Schema):
    """A decision about a device. Approving needs `current_password`, if the account has a password."""

    decision = Text(
        required=True,
        load_only=True,
        validate=validate.OneOf(["approve", "deny"], error='The decision must be "approve" or "deny".'),
        metadata={"example": "approve"},
    )
    current_password = current_password(required=False)


def describe_device(authorization: DeviceAuthorization) -> dict[str, Any]:
    """Return the members that describe a pending authorization."""
    record = authorization.record
    return {
        "user_code": format_user_code(record.user_code),
        "client_name": record.client_name,
        "rights": record.rights,
        "ip": record.ip,
        "created_at": datetime.fromtimestamp(record.created_at, UTC),
        "expires_at": datetime.fromtimestamp(record.expires_at, UTC),
    }
