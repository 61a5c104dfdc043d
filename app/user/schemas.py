import marshmallow as ma

from app.clock import rfc3339


class Timestamp(ma.fields.Field):  # type: ignore[type-arg]
    """RFC 3339 in UTC."""

    def _serialize(self, value, attr, obj, **kwargs):  # type: ignore[no-untyped-def]
        return None if value is None else rfc3339(value)


class UserOut(ma.Schema):
    id = ma.fields.Integer(required=True)
    username = ma.fields.String(required=True)
    email = ma.fields.String(required=True)
    email_verified = ma.fields.Boolean(required=True)
    created_at = Timestamp(required=True, metadata={"type": "string", "format": "date-time"})
