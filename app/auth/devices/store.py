"""Device authorizations in progress: their codes, who may decide them, and the decision."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import redis

from app.infra import redis_scripts
from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.infra.redis_scripts import Script

TTL_SECONDS = 600
# Redis keeps an authorization for longer, so that a device learns that its code has expired.
_STORED_SECONDS = 2 * TTL_SECONDS
INTERVAL_SECONDS, SLOW_DOWN_SECONDS = 5, 5  # RFC 8628 sections 3.2 and 3.5
_TOLERANCE_SECONDS = 0.5  # timers are not exact

# Without vowels, so that no code is a word, and without Y (RFC 8628 section 6.1).
USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
USER_CODE_LENGTH = 8


class DeviceRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device authorization as Redis stores it. `created_at` is in seconds since 1970.

    `user_id` is the first person who looked the code up, the only one who may decide. `epoch` is their
    account's `session_epoch` when they approved: anything that changes it also ends the approval.
    """

    user_code: str
    client_name: str
    rights: tuple[str, ...]
    ip: str
    created_at: float
    status: Literal["pending", "approved", "denied", "redeemed"] = "pending"
    user_id: int | None = None
    epoch: int | None = None

    @property
    def expires_at(self) -> float:
        """When the codes expire, in seconds since 1970."""
        return self.created_at + TTL_SECONDS

    @property
    def has_expired(self) -> bool:
        """Whether the codes have expired."""
        return utc_now().timestamp() >= self.expires_at


@dataclass(frozen=True)
class DeviceAuthorization:
    """A device authorization, and its key in Redis."""

    key: str
    record: DeviceRecord


@dataclass(frozen=True)
class NewDeviceAuthorization:
    """A device authorization that has just been started."""

    device_code: str = field(repr=False)
    user_code: str = field(repr=False)


class DeviceAuthorizationStore:
    """Keeps each authorization under one key in Redis, named by a hash of its device code.

    A second key, named by a keyed hash of the user code, contains the first one's name. Both values are
    encrypted, so that neither read nor write access to Redis is enough to obtain a token.
    """

    def __init__(self, client: redis.Redis, cipher: RedisCipher, secret_key: str) -> None:
        self._client = client
        self._cipher = cipher
        self._secret_key = secret_key.encode()
        self._poll = Script(Path(__file__).with_name("poll.lua"))

    def create(self, client_name: str, rights: tuple[str, ...], ip: str) -> NewDeviceAuthorization:
        """Start an authorization. The device code has 256 random bits, and the user code 34.

        Raises:
            redis.RedisError: Redis is not available.
        """
        device_code = secrets.token_urlsafe(32)
        key = _key(device_code)
        user_code = self._reserve_user_code(key)
        record = DeviceRecord(user_code, client_name, rights, ip, utc_now().timestamp())
        self._client.set(key, self._encrypt(DeviceAuthorization(key, record)), ex=_STORED_SECONDS)
        return NewDeviceAuthorization(device_code, user_code)

    def find(self, user_code: str, user_id: int) -> DeviceAuthorization | None:
        """Return the pending authorization with this code, and let no one but this user decide it.

        A code that is known to two people, such as one that was read over a shoulder, must not be decided by
        the second (CVE-2026-45337).

        Returns None if there is none, if it has expired or been decided, or if another user was first.

        Raises:
            redis.RedisError: Redis is not available.
        """
        pointer = self._pointer(user_code)
        stored: Any = self._client.get(pointer)
        key = self._cipher.decrypt(pointer, stored) if stored is not None else None
        found = self._read(key.decode()) if key is not None else None
        if found is not None and found.record.user_id is None:
            # If another request was faster, the next line reads its result.
            self.replace(found, user_id=user_id)
            found = self._read(found.key)
        if found is None or found.record.has_expired or found.record.status != "pending":
            return None
        return found if found.record.user_id == user_id else None

    def poll(self, device_code: str) -> tuple[DeviceAuthorization | None, bool]:
        """Return the authorization with this code, and whether the device polls too often.

        Raises:
            redis.RedisError: Redis is not available.
        """
        key = _key(device_code)
        limits = (INTERVAL_SECONDS * 1000, SLOW_DOWN_SECONDS * 1000, int(_TOLERANCE_SECONDS * 1000))
        read, poll = ("GET", key), self._poll.command([key, _polls_key(key)], *limits)
        stored, too_early = redis_scripts.run(self._client, read, poll)
        for reply in (stored, too_early):
            if isinstance(reply, redis.RedisError):
                raise reply
        return self._decode(key, stored), bool(too_early)

    def replace(self, old: DeviceAuthorization, **changes: Any) -> bool:
        """Change an authorization, unless another request has changed it. Returns whether it was changed.

        Raises:
            redis.RedisError: Redis is not available.
        """
        new = replace(old, record=msgspec.structs.replace(old.record, **changes))
        return compare_and_set(self._client, old.key, self._encrypt(old), self._encrypt(new))

    def _reserve_user_code(self, key: str) -> str:
        while True:
            code = "".join(secrets.choice(USER_CODE_LETTERS) for _ in range(USER_CODE_LENGTH))
            pointer = self._pointer(code)
            if self._client.set(
                pointer, self._cipher.encrypt(pointer, key.encode()), ex=TTL_SECONDS, nx=True
            ):
                return code

    def _read(self, key: str) -> DeviceAuthorization | None:
        stored: Any = self._client.get(key)
        return self._decode(key, stored)

    def _decode(self, key: str, stored: bytes | None) -> DeviceAuthorization | None:
        packed = self._cipher.decrypt(key, stored) if stored is not None else None
        if packed is None:
            return None
        try:
            return DeviceAuthorization(key, msgspec.msgpack.decode(packed, type=DeviceRecord))
        except msgspec.MsgspecError:
            return None

    def _encrypt(self, authorization: DeviceAuthorization) -> bytes:
        return self._cipher.encrypt(authorization.key, msgspec.msgpack.encode(authorization.record))

    def _pointer(self, user_code: str) -> str:
        # Keyed, because all user codes could be hashed and compared.
        digest = hmac.new(self._secret_key, f"device user code\0{user_code}".encode(), hashlib.sha256)
        return f"device-user-code:{digest.hexdigest()}"


def _polls_key(key: str) -> str:
    """Return the key of the state of an authorization's polls, in the same slot of a cluster."""
    return f"device-authorization:polls:{{{key}}}"


def _key(device_code: str) -> str:
    return f"device-authorization:{hashlib.sha256(device_code.encode()).hexdigest()}"
