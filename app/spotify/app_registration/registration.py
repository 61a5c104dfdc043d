"""Registers, replaces, and removes people's own applications, and ends connections made with another one."""

import logging
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import (
    SpotifyAppNotAccepted,
    SpotifyAppsDisabled,
    SpotifyRateLimited,
    SpotifyUnavailable,
    ValidationError,
)
from app.infra.clock import utc_now
from app.infra.database import run_in_transaction
from app.infra.encryption import TokenCipher
from app.models import AccessToken, SpotifyApp, SpotifyUser, User
from app.models.snapshots import UserSnapshot
from app.models.user import lock_user
from app.spotify import connections
from app.spotify.applications import pauses
from app.spotify.applications.encryption import encrypt_secret
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import Application, deployment_application
from app.spotify.clients.errors import Misconfigured, RateLimited, SpotifyError
from app.spotify.connections import Connections
from app.spotify.ways_in import SpotifyWayIn, require_another_way_in
from app.web.validation import APPLICATION_OF_SERVER
from config import Config

log = logging.getLogger(__name__)

_NOT_ACCEPTED = {
    "client_id": "Spotify does not know this ID. Copy the client ID from the dashboard.",
    "client_secret": 'Spotify does not accept this secret. The dashboard shows it with "View client secret".',
}


class AppRegistration:
    """Changes which application a person connects with.

    A person has one connection. It is made with one application, and ends if the person changes to another
    client id, because its tokens are worthless with that one.
    """

    def __init__(
        self,
        config: Config,
        cipher: TokenCipher,
        accounts: SpotifyAccounts,
        bulkhead: AccountsBulkhead,
        connections: Connections,
        way_in: SpotifyWayIn,
    ) -> None:
        self._config = config
        self._cipher = cipher
        self._accounts = accounts
        self._bulkhead = bulkhead
        self._connections = connections
        self._way_in = way_in

    def register(self, owner: User | UserSnapshot, client_id: str, client_secret: str | None) -> SpotifyApp:
        """Check an application at Spotify, and store it as the person's own. It replaces an earlier one.

        Without a secret, it is a public client. A connection made with another client id ends.

        Raises:
            SpotifyAppsDisabled: People may not bring their own application.
            ValidationError: The client id is the deployment's.
            SpotifyAppNotAccepted: Spotify rejects the client id or the secret.
            SpotifyUnavailable, SpotifyRateLimited: Spotify could not check them now.
            LastWayIn: The connection would end, and without it the person could no longer sign in.
            NotSignedIn: The account is gone or disabled, or its sessions have ended meanwhile.
        """
        if self._config.spotify_apps == "deployment":
            raise SpotifyAppsDisabled
        deployment = deployment_application(self._config)
        if deployment is not None and client_id == deployment.client_id:
            raise ValidationError(errors={"client_id": [APPLICATION_OF_SERVER]})
        self._require_accepted(Application(client_id, client_secret))

        def work(db: Session) -> tuple[SpotifyApp, list[int]]:
            lock_user(db, owner.id, owner.session_epoch)
            of_another = sa.or_(AccessToken.client_id.is_(None), AccessToken.client_id != client_id)
            ended = self._end_connection(db, owner.id, of_another)
            row = db.scalar(_of(owner.id))
            if row is None:
                row = SpotifyApp(owner_id=owner.id)
                db.add(row)
            if row.client_id != client_id:
                row.client_id, row.created_at = client_id, utc_now()
            db.flush()  # assigns the id that the secret is encrypted for
            for column, value in encrypt_secret(self._cipher, row.id, client_secret).items():
                setattr(row, column, value)
            pauses.resume(db, row)
            db.flush()
            return row, ended

        row, ended = run_in_transaction(work, is_idempotent=True)
        self._connections.forget_deleted(ended)
        log.info("spotify_app_registered", extra={"spotify_app_id": row.id})
        return row

    def remove(self, owner: User | UserSnapshot) -> bool:
        """Remove a person's own application and the connection made with it. Returns whether there was one.

        Raises:
            LastWayIn, NotSignedIn: As for `register`.
        """

        def work(db: Session) -> tuple[bool, list[int]]:
            lock_user(db, owner.id, owner.session_epoch)
            row = db.scalar(_of(owner.id))
            if row is None:
                return False, []
            ended = self._end_connection(db, owner.id, SpotifyUser.spotify_app_id == row.id)
            db.delete(row)
            return True, ended

        was_there, ended = run_in_transaction(work)
        self._connections.forget_deleted(ended)
        if was_there:
            log.info("spotify_app_removed", extra={"account": owner.id})
        return was_there

    def _end_connection(self, db: Session, user_id: int, condition: sa.ColumnElement[bool]) -> list[int]:
        """Delete a person's connection if it meets a condition. Returns its id, or nothing.

        Raises:
            LastWayIn: The person could no longer sign in.
        """
        self._way_in.remove(db, user_id, condition)
        ended = connections.delete_of_user(db, user_id, condition)
        if ended:
            require_another_way_in(db, user_id)
        return ended

    def _require_accepted(self, application: Application) -> None:
        try:
            with self._bulkhead.exchanging(application.client_id):
                if application.client_secret is None:
                    self._accounts.check_public_client(application)
                else:
                    self._accounts.check_client(application)
        except Misconfigured as error:
            raise SpotifyAppNotAccepted(errors=_what_is_wrong(application, error)) from None
        except RateLimited as error:
            raise SpotifyRateLimited(retry_after=error.retry_after) from None
        except SpotifyError as error:
            raise SpotifyUnavailable(
                "Spotify could not check the application now, so nothing was changed. Try again shortly.",
                retry_after=error.retry_after,
            ) from None


def _what_is_wrong(application: Application, error: Misconfigured) -> dict[str, list[str]]:
    """Return which field Spotify rejects, or both if it does not say that in the words we know."""
    if application.client_secret is None or error.description == "Invalid client":
        fields = ["client_id"]
    elif error.description == "Invalid client secret":
        fields = ["client_secret"]
    else:
        fields = ["client_id", "client_secret"]
    return {field: [_NOT_ACCEPTED[field]] for field in fields}


def delete_made_since(db: Session, user_id: int, since: datetime | None) -> list[int]:
    """Delete a person's connection and own application, which may be someone else's.

    With `since`, only if they were made since then. Returns the ids of the connections, as
    `connections.delete_of_user` does.
    """
    is_new = [SpotifyApp.created_at >= since] if since is not None else []
    apps = list(db.scalars(sa.select(SpotifyApp.id).where(SpotifyApp.owner_id == user_id, *is_new)))
    is_made = [AccessToken.authorized_at >= since] if since is not None else []
    deleted = connections.delete_of_user(db, user_id, *is_made)
    db.execute(sa.delete(SpotifyApp).where(SpotifyApp.id.in_(apps)))
    return deleted


def _of(user_id: int) -> sa.Select[SpotifyApp]:
    return sa.select(SpotifyApp).where(SpotifyApp.owner_id == user_id).with_for_update()
