import marshmallow as ma

from app.api import Timestamp


class UserOut(ma.Schema):
    id = ma.fields.Integer(required=True)
    username = ma.fields.String(required=True)
    email = ma.fields.String(required=True)
    email_verified = ma.fields.Boolean(required=True)
    created_at = Timestamp(required=True)
