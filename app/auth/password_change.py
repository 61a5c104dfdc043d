"""Changes and resets passwords."""

import logging

from sqlalchemy.orm import Session

from app.auth import email_tokens, lookup, personal_access_tokens
from app.auth.email_change import cancel_pending
from app.auth.notifications import Notifications
from app.auth.password_policy import validate_strength
from app.auth.passwords import Passwords
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.models import MailKind, Purpose, User
from app.spotify.app_registration.registration import delete_made_since
from app.spotify.connections import Connections
from app.spotify.ways_in import SpotifyWayIn

log = logging.getLogger(__name__)


class PasswordChanges:
    """Stores new passwords, and ends everything that was started with the old one."""

    def __init__(
        self,
        passwords: Passwords,
        notifications: Notifications,
        connections: Connections,
        way_in: SpotifyWayIn,
    ) -> None:
        self._passwords = passwords
        self._notifications = notifications
        self._connections = connections
        self._way_in = way_in

    def change(self, user: User, new_password: str) -> User:
        """Store a new password, and end all sessions and tokens.

        Raises:
            ValidationError: The new password is guessable.
            InvalidCredentials: The password of `user`, which the caller has verified, has been changed since.
            NotSignedIn: The account has been deleted or disabled since.
            ServiceUnavailable: Too many passwords are being hashed.
        """
        validate_strength(new_password, field="new_password", username=user.username, email=user.email)
        password_hash = self._hash(new_password)

        def work(db: Session) -> User:
            row = lookup.lock_confirmed(db, user)
            self._store(db, row, password_hash)
            return row

        changed = run_in_transaction(work)
        log.info("password_changed")
        return changed

    def reset(self, token: str, password: str) -> User:
        """Store a new password with a token from an email, which also verifies the address.

        Raises:
            InvalidToken: See `email_tokens.redeem`.
            ValidationError: The password is guessable. The token stays valid.
            ServiceUnavailable: Too many passwords are being hashed. The token stays valid.
        """
        with reading() as db:
            owner = email_tokens.owner_of(db, token, Purpose.PASSWORD_RESET)
        validate_strength(password, field="password", username=owner.username, email=owner.email)
        password_hash = self._hash(password)

        def work(db: Session) -> tuple[User, list[int]]:
            user, _ = email_tokens.redeem(db, token, Purpose.PASSWORD_RESET)
            # Someone who knew the old password may have connected their own Spotify account.
            self._way_in.remove(db, user.id)
            # Someone else may have registered this address, and connected theirs.
            deleted = [] if user.email_verified else delete_made_since(db, user.id, None)
            user.email_verified_at = user.email_verified_at or utc_now()
            self._store(db, user, password_hash)
            return user, deleted

        user, deleted = run_in_transaction(work)
        self._connections.forget_deleted(deleted)
        log.info("password_reset", extra={"account": user.id})
        return user

    def _hash(self, password: str) -> str:
        with self._passwords.hashing_slot():
            return self._passwords.hash(password)

    def _store(self, db: Session, user: User, password_hash: str) -> None:
        """Store a hash in a locked row, and end everything that was started with the old password.

        That includes reset links and a pending change of address. Someone who knew the old password or can
        read the mailbox must not be able to undo the owner's change.
        """
        user.password_hash = password_hash
        user.end_sessions()
        personal_access_tokens.revoke_all(db, user.id)
        email_tokens.revoke(db, user, Purpose.PASSWORD_RESET)
        cancel_pending(db, user)
        self._notifications.notify(db, user, MailKind.PASSWORD_CHANGED)
