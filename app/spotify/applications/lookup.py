"""Finds the application that a grant was issued to, or that a person has registered."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyAppRequired, SpotifyNotConnected, SpotifyStateMismatch
from app.infra.database import reading
from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState, SpotifyApp, SpotifyUser
from app.models.snapshots import Grant
from app.spotify.applications.encryption import decrypt_secret
from app.spotify.clients.application import Application, deployment_application
from config import Config

_CHANGED = "Your Spotify application was changed in the meantime. Start again at GET /api/spotify/authorize."


class Applications:
    """Returns applications with their secrets, decrypted."""

    def __init__(self, config: Config, cipher: TokenCipher) -> None:
        self.deployment = deployment_application(config)
        self._policy = config.spotify_apps
        self._cipher = cipher

    def to_connect(self, user_id: int | None, *, signs_in: bool = False) -> Application:
        """Return the application with which a person connects: their own one, or else the deployment's.

        A visitor, for whom `user_id` is None, has none of their own. With `signs_in`, no one is known yet.

        Raises:
            SpotifyAppRequired: They need their own one, and have none.
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        own = self.of_user(user_id) if user_id is not None and self._policy != "deployment" else None
        if own is not None:
            return own
        if self._policy == "own" and not signs_in:
            raise SpotifyAppRequired
        return self._require_deployment()

    def to_complete(
        self, user_id: int | None, client_id: str | None, *, signs_in: bool = False
    ) -> Application:
        """Return the application with which a person has started to connect.

        `client_id` is the `own_client_id` of that application.

        Raises:
            SpotifyStateMismatch: They would connect with another one now.
            SpotifyAppRequired, SpotifyUnavailable: As for `to_connect`.
        """
        application = self.to_connect(user_id, signs_in=signs_in)
        if application.own_client_id != client_id:
            raise SpotifyStateMismatch(_CHANGED)
        return application

    def require_current(self, db: Session, user_id: int, application: Application) -> None:
        """Require that a person, whose account is locked, still connects with this application.

        Raises:
            SpotifyStateMismatch: They have registered, replaced, or removed their own one.
        """
        if self._policy == "deployment":
            return
        found = sa.select(SpotifyApp.id, SpotifyApp.client_id).where(SpotifyApp.owner_id == user_id)
        current = db.execute(found.with_for_update()).one_or_none() or (None, None)
        if tuple(current) != (application.id, application.own_client_id):
            raise SpotifyStateMismatch(_CHANGED)

    def can_use(self, grant: Grant) -> bool:
        """Return whether anything may be sent with a grant.

        If this server has no application anymore, those that were issued to it wait for one. Then the person
        can only connect with one of their own.
        """
        return grant.client_id is not None or self.deployment is not None

    def of_grant(self, grant: Grant) -> Application:
        """Return the application that a grant was issued to. Reads nothing if it is the deployment's.

        Raises:
            SpotifyAppRequired, SpotifyNotConnected, SpotifyUnavailable: As for `choose`.
        """
        if grant.client_id is None:
            return self.choose(grant, None)
        with reading() as db:
            return self.choose(grant, rows_of_grants(db, [grant]).get(grant.spotify_user_id))

    def choose(self, grant: Grant, own: SpotifyApp | None) -> Application:
        """Return the application that a grant was issued to. `own` is what `rows_of_grants` has found.

        Raises:
            SpotifyAppRequired: It is the deployment's, which has none anymore.
            SpotifyNotConnected: Its owner has removed or replaced the application, and so ended the grant.
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        if grant.client_id is None:
            return self._require_deployment()
        if own is None:
            raise SpotifyNotConnected
        return self.decrypt(own)

    def _require_deployment(self) -> Application:
        if self.deployment is None:
            raise SpotifyAppRequired
        return self.deployment

    def of_user(self, user_id: int) -> Application | None:
        """Return the application that a person has registered.

        Raises:
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        row = row_of_user(user_id)
        return None if row is None else self.decrypt(row)

    def decrypt(self, row: SpotifyApp) -> Application:
        """Return the application of a row.

        Raises:
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        return Application(row.client_id, decrypt_secret(self._cipher, row), row.id, row.client_secret)


def row_of_user(user_id: int) -> SpotifyApp | None:
    """Return the row of the application that a person has registered."""
    with reading() as db:
        return db.scalar(sa.select(SpotifyApp).where(SpotifyApp.owner_id == user_id))


def count_by_state() -> dict[str, int]:
    """Return the number of own applications in each state that one has."""
    counted = sa.select(SpotifyApp.state, sa.func.count()).group_by(SpotifyApp.state)
    with reading() as db:
        return dict(db.execute(counted.order_by(SpotifyApp.state)).all())


def count_of_deployment() -> int:
    """Return the number of grants that were issued to the deployment's application and have not ended."""
    not_ended = AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED
    with reading() as db:
        found = sa.select(sa.func.count()).where(AccessToken.client_id.is_(None), not_ended)
        return db.execute(found).scalar_one()


def rows_of_grants(db: Session, grants: Iterable[Grant]) -> dict[int, SpotifyApp]:
    """Return the rows of the own applications that grants were issued to, by connection, in one query.

    Those of the deployment's application are left out, and those whose application is gone or has another
    client id now.
    """
    own = {grant.spotify_user_id: grant.client_id for grant in grants if grant.client_id is not None}
    if not own:
        return {}
    found = db.execute(
        sa.select(SpotifyUser.id, SpotifyApp)
        .join(SpotifyApp, SpotifyUser.spotify_app_id == SpotifyApp.id)
        .where(SpotifyUser.id.in_(own))
    )
    return {spotify_user_id: row for spotify_user_id, row in found if row.client_id == own[spotify_user_id]}
