import marshmallow as ma

from app.spotify.schemas import SpotifyOut
from app.web.api import Timestamp


class UserOut(ma.Schema):
    id = ma.fields.Integer(required=True)
    username = ma.fields.String(required=True)
    email = ma.fields.String(required=True)
    email_verified = ma.fields.Boolean(required=True)
    pending_email = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Replaces `email` as soon as it is verified"},
    )
    created_at = Timestamp(required=True)


class ListedSessionOut(ma.Schema):
    id = ma.fields.String(required=True, metadata={"description": "Names the session; it is not its cookie"})
    current = ma.fields.Boolean(required=True, metadata={"description": "Whether it is this request's"})
    created_at = Timestamp(required=True)
    last_seen_at = Timestamp(required=True)
    ip = ma.fields.String(required=True, metadata={"description": "The address it was signed in from"})
    user_agent = ma.fields.String(required=True)


class SessionsOut(ma.Schema):
    items = ma.fields.List(ma.fields.Nested(ListedSessionOut), required=True)


class PreviousEmail(ma.Schema):
    email = ma.fields.String(required=True)
    email_address = ma.fields.String(required=True, allow_none=True)
    expires_at = Timestamp(required=True)  # until when the change can be undone


class ExportedUser(UserOut):
    email_address = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "As it was entered, for sending"}
    )
    email_verified_at = Timestamp(required=True, allow_none=True)
    pending_email_address = ma.fields.String(required=True, allow_none=True)
    previous_emails = ma.fields.List(ma.fields.Nested(PreviousEmail), required=True)
    disabled_at = Timestamp(required=True, allow_none=True)
    updated_at = Timestamp(required=True)


class ExportedSpotify(SpotifyOut):
    product = ma.fields.String(required=True, allow_none=True)
    country = ma.fields.String(required=True, allow_none=True)
    connected_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)
    last_used_at = Timestamp(required=True)


class ExportedRefresh(ma.Schema):
    started_at = Timestamp(required=True)
    finished_at = Timestamp(required=True, allow_none=True)
    outcome = ma.fields.String(required=True, allow_none=True)


class ExportOut(ma.Schema):
    exported_at = Timestamp(required=True)
    user = ma.fields.Nested(ExportedUser, required=True)
    sessions = ma.fields.List(ma.fields.Nested(ListedSessionOut), required=True)
    spotify = ma.fields.Nested(ExportedSpotify, required=True, allow_none=True)
    spotify_refreshes = ma.fields.List(ma.fields.Nested(ExportedRefresh), required=True)
