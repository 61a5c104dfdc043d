"""The steps of the device authorization grant (RFC 8628): start, look up, decide, and redeem."""

import logging
import re
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit, urlunsplit

from app.auth.devices.errors import OAuthError
from app.auth.devices.store import (
    INTERVAL_SECONDS,
    TTL_SECONDS,
    USER_CODE_LENGTH,
    USER_CODE_LETTERS,
    DeviceAuthorization,
    DeviceAuthorizationStore,
)
from app.auth.personal_access_tokens import (
    DEFAULT_LIFETIME,
    MAX_TOKENS,
    CreatedToken,
    PersonalAccessTokens,
    list_tokens,
)
from app.auth.usernames import is_label
from app.errors import NotSignedIn, TooManyTokens
from app.models import Right, User
from app.models.snapshots import UserSnapshot
from app.web.client_address import client_network
from app.web.throttle import Throttle

log = logging.getLogger(__name__)

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
MAX_CLIENT_NAME_LENGTH = 64

# From one address.
STARTS_PER_HOUR = 100
# For one account, and from one address, which an office may share. Each includes the loading of the page.
# One guess in 25 billion is right.
LOOKUPS_PER_HOUR, LOOKUPS_PER_HOUR_AND_ADDRESS = 60, 600

_USER_CODE = re.compile(f"[{USER_CODE_LETTERS}]{{{USER_CODE_LENGTH}}}")


class DeviceFlow:
    """Authorizes devices, and issues their tokens."""

    def __init__(
        self,
        store: DeviceAuthorizationStore,
        tokens: PersonalAccessTokens,
        throttle: Throttle,
        frontend_url: str,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._throttle = throttle
        self._page = _page_url(frontend_url)

    def start(self, client_name: str, scope: str, ip: str) -> dict[str, object]:
        """Start an authorization, and return what the device shows (RFC 8628 section 3.2).

        Raises:
            OAuthError: The name or the scope is invalid.
            TooManyAttempts: This address has started too many.
            redis.RedisError: Redis is not available.
        """
        name, rights = _valid_name(client_name), _rights_in(scope)
        self._throttle.hit("device-authorizations", client_network(), limit=STARTS_PER_HOUR)
        started = self._store.create(name, rights, ip)
        log.info("device_authorization_started")
        shown = format_user_code(started.user_code)
        return {
            "device_code": started.device_code,
            "user_code": shown,
            "verification_uri": self._page,
            "verification_uri_complete": f"{self._page}?{urlencode({'code': shown})}",
            "expires_in": TTL_SECONDS,
            "interval": INTERVAL_SECONDS,
        }

    def find(self, user_code: str, user: UserSnapshot | User) -> DeviceAuthorization | None:
        """Return the pending authorization with this code. From now on, only this user may decide it.

        Raises:
            TooManyAttempts: The user or the address has tried too many codes.
            redis.RedisError: Redis is not available.
        """
        code = re.sub(r"[\s-]", "", user_code).upper()
        if not _USER_CODE.fullmatch(code):
            return None
        self._throttle.hit("device-codes", str(user.id), limit=LOOKUPS_PER_HOUR)
        self._throttle.hit("device-codes", client_network(), limit=LOOKUPS_PER_HOUR_AND_ADDRESS)
        return self._store.find(code, user.id)

    def decide(self, pending: DeviceAuthorization, user: User, *, approved: bool) -> bool:
        """Approve or deny an authorization that `find` has returned. Returns whether it was still pending.

        Raises:
            TooManyTokens: The user has as many tokens as an account may have.
            redis.RedisError: Redis is not available.
        """
        if approved:
            _require_room(user.id, user.session_epoch)
        status = "approved" if approved else "denied"
        decided = self._store.replace(pending, status=status, epoch=user.session_epoch)
        if decided:
            log.info("device_decided", extra={"approved": approved})
        return decided

    def redeem(self, device_code: str) -> CreatedToken:
        """Create the token of an approved device. Works once (RFC 8628 section 3.5).

        The code is used up before the token is created, so that no crash can lead to two. If the response is
        lost, the device has to start again.

        Raises:
            OAuthError: The authorization is pending, denied, expired, redeemed, or unknown, or the account
                has changed since it was approved.
            redis.RedisError: Redis is not available.
            sqlalchemy.exc.OperationalError: MySQL is not available.
        """
        found, too_early = self._store.poll(device_code)
        if found is None or found.record.status == "redeemed":
            raise OAuthError("invalid_grant", "The device code is unknown or was used. Start again.")
        if found.record.has_expired:
            raise OAuthError("expired_token", "The device code has expired. Start again.")
        if found.record.status == "pending":
            if too_early:
                raise OAuthError("slow_down", "Wait 5 seconds longer between requests from now on.")
            raise OAuthError("authorization_pending", "The person has not decided yet.")
        if found.record.status == "denied":
            raise _denied()
        return self._create_token(found)

    def _create_token(self, approved: DeviceAuthorization) -> CreatedToken:
        record = approved.record
        user_id, epoch = record.user_id, record.epoch
        assert user_id is not None
        assert epoch is not None
        try:
            # Reads before the code is used up: if the database is down, the device can try again.
            _require_room(user_id, epoch)
            if not self._store.replace(approved, status="redeemed"):
                raise OAuthError("invalid_grant", "The device code was used by another request.")
            return self._tokens.create(
                user_id,
                epoch,
                name=record.client_name,
                rights=[Right(right) for right in record.rights],
                lifetime=DEFAULT_LIFETIME,
            )
        except (NotSignedIn, TooManyTokens):
            raise _denied() from None


def format_user_code(code: str) -> str:
    """Return a user code as people see it: `WDJB-MJHT`."""
    return f"{code[:4]}-{code[4:]}"


def _page_url(frontend_url: str) -> str:
    """Return the URL of the app's page on which people enter a user code."""
    parts = urlsplit(frontend_url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/device", "", ""))


def _valid_name(client_name: str) -> str:
    """Return a client's name without surrounding spaces.

    It is not verified. It must not be invisible, or change the direction of the text around it.

    Raises:
        OAuthError: The name is missing, too long, invisible, or not printable.
    """
    name = client_name.strip(" ")
    if len(name) > MAX_CLIENT_NAME_LENGTH or not is_label(name):
        raise OAuthError(
            "invalid_request", f"Send a client_name of 1 to {MAX_CLIENT_NAME_LENGTH} printable characters."
        )
    return name


def _rights_in(scope: str) -> tuple[str, ...]:
    """Return the rights in a scope, each once.

    Raises:
        OAuthError: There is none, or an unknown one.
    """
    requested: Iterable[str] = set(scope.split(" ")) - {""}
    rights = tuple(right.value for right in Right if right in requested)
    if not rights or len(rights) != len(set(requested)):
        raise OAuthError("invalid_scope", f"The scope must be one or more of: {' '.join(Right)}.")
    return rights


def _require_room(user_id: int, epoch: int) -> None:
    """Require that an account may have another token.

    Raises:
        TooManyTokens: It has as many as it may have.
    """
    if len(list_tokens(user_id, epoch)) >= MAX_TOKENS:
        raise TooManyTokens


def _denied() -> OAuthError:
    return OAuthError("access_denied", "The person denied this device, or the approval is no longer valid.")
