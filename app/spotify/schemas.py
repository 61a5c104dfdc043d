import marshmallow as ma

from app.user.schemas import Timestamp

_TIME = {"type": "string", "format": "date-time"}


class SpotifyOut(ma.Schema):
    """A connection to Spotify. All but `status` only with a link."""

    status = ma.fields.String(
        required=True,
        metadata={
            "enum": [
                "not_connected",
                "connected",
                "suspect",
                "reauthorization_required",
            ]
        },
    )
    spotify_id = ma.fields.String()
    account_id = ma.fields.String(allow_none=True)
    display_name = ma.fields.String(allow_none=True)
    image_url = ma.fields.String(allow_none=True)
    scopes = ma.fields.List(ma.fields.String())
    authorized_at = Timestamp(metadata=_TIME)
    reauthorize_by = Timestamp(metadata=_TIME)
    access_token_expires_at = Timestamp(metadata=_TIME)
    last_refreshed_at = Timestamp(allow_none=True, metadata=_TIME)


class AuthorizeQuery(ma.Schema):
    """What Spotify adds to the redirect URI; all absent on a first visit."""

    code = ma.fields.String()
    error = ma.fields.String()
    state = ma.fields.String()


class AuthorizeOut(ma.Schema):
    status = ma.fields.String(required=True, metadata={"enum": ["connected", "authorization_required"]})
    spotify = ma.fields.Nested(SpotifyOut)
    authorize_url = ma.fields.String(metadata={"format": "uri"})
    reason = ma.fields.String(metadata={"enum": ["reauthorization_required"]})


class TokenOut(ma.Schema):
    access_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True)
    expires_in = ma.fields.Integer(required=True)
    expires_at = Timestamp(required=True, metadata=_TIME)
    scope = ma.fields.String(required=True)
