"""What a session contains, and how Redis stores it: as msgpack of known fields, encrypted for its key."""

from typing import Annotated

import msgspec

from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher

# The idle timeout of a session without an account or a connection, such as that of a visitor on the way
# to Spotify. Anyone can start any number of these, so Redis must not keep them for days.
EMPTY_SESSION_SECONDS = 600
# By how much the clocks of our servers may differ. A stored time further ahead than this is not valid.
CLOCK_SKEW_SECONDS = 300

# Limits, so that tampered data can neither overflow a column nor last forever.
RowId = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=2**32)]
Epoch = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class SessionData(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that a session contains. Times are in seconds since 1970.

    Most fields are written once, together with a new session id, so that concurrent requests cannot undo
    each other's changes. Only `cookie_set_at` and the connection change later.
    """

    created_at: Moment
    # When the cookie was last set. Browsers may delete it after seven days, whatever its Max-Age.
    cookie_set_at: Moment = 0
    user_id: RowId | None = None
    signed_in_at: Moment | None = None
    epoch: Epoch | None = None  # the account's `session_epoch`
    address: str = ""
    user_agent: str = ""
    # The connection, the grant through which a visitor may use it, and its owner's `session_epoch`, whose
    # change ends the visitor's session. `owner_epoch` is None if no account owns the connection.
    spotify_user_id: RowId | None = None
    grant_id: str | None = None
    owner_epoch: Epoch | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the session has neither an account nor a connection."""
        return self.user_id is None and self.spotify_user_id is None

    @property
    def account_epoch(self) -> int | None:
        """The epoch of the account that lists this session."""
        return self.owner_epoch if self.user_id is None else self.epoch

    @property
    def index(self) -> str | None:
        """The key of the index that lists this session. None for a visitor without a connection."""
        if self.user_id is not None:
            return index_of_user(self.user_id)
        if self.spotify_user_id is not None and self.grant_id is not None:
            return index_of_grant(self.grant_id)
        return None


def index_of_user(user_id: int) -> str:
    """Return the key of the index of an account's sessions."""
    return f"sessions-of:{user_id}"


def index_of_grant(grant_id: str) -> str:
    """Return the key of the index of visitors' sessions that hold this grant."""
    return f"visitors-of:{grant_id}"


def owner_indexes(user_id: int, grant_id: str | None) -> list[str]:
    """Return the keys of the indexes of all sessions that a person can see and end.

    These are the sessions signed in to the account, and those of visitors who use its connection through
    `grant_id`, the current grant.
    """
    return [index_of_user(user_id), *([index_of_grant(grant_id)] if grant_id is not None else [])]


def encode(cipher: RedisCipher, key: str, data: SessionData) -> bytes:
    """Encode a session for its Redis key."""
    return cipher.encrypt(key, msgspec.msgpack.encode(data))


def decode(cipher: RedisCipher, key: str, raw: bytes) -> SessionData | None:
    """Decode a session. Returns None for anything that this application did not store under this key."""
    packed = cipher.decrypt(key, raw)
    return None if packed is None else unpack(packed)


def unpack(packed: bytes) -> SessionData | None:
    """Read a session from msgpack. Returns None for anything else."""
    try:
        data = msgspec.msgpack.decode(packed, type=SessionData)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if is_in_future(data.created_at) else data


def is_in_future(moment: float) -> bool:
    """Return whether a stored time is further ahead than the servers' clocks can differ."""
    return moment > utc_now().timestamp() + CLOCK_SKEW_SECONDS
