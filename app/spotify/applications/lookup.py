"""Finds the application that a grant was issued to, or that a person has registered."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyNotConnected
from app.infra.database import reading
from app.infra.encryption import TokenCipher
from app.models import AccessToken, SpotifyApp, SpotifyUser
from app.models.snapshots import TokenSnapshot
from app.spotify.applications.encryption import decrypt_secret
from app.spotify.clients.application import Application, deployment_application
from config import Config

Grant = AccessToken | TokenSnapshot


class Applications:
    """Returns applications with their secrets in the clear."""

    def __init__(self, config: Config, cipher: TokenCipher) -> None:
        self.deployment = deployment_application(config)
        self._cipher = cipher

    def of_grant(self, grant: Grant) -> Application:
        """Return the application that a grant was issued to. Reads nothing if it is the deployment's.

        Raises:
            SpotifyNotConnected: Its owner has removed or replaced the application, and so ended the grant.
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        if grant.client_id is None:
            return self.deployment
        with reading() as db:
            row = rows_of_grants(db, [grant]).get(grant.spotify_user_id)
        if row is None:
            raise SpotifyNotConnected
        return self.decrypt(row)

    def of_user(self, user_id: int) -> Application | None:
        """Return the application that a person has registered.

        Raises:
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        with reading() as db:
            row = db.scalar(sa.select(SpotifyApp).where(SpotifyApp.owner_id == user_id))
        return None if row is None else self.decrypt(row)

    def decrypt(self, row: SpotifyApp) -> Application:
        """Return the application of a row.

        Raises:
            SpotifyUnavailable: Its secret cannot be decrypted.
        """
        return Application(row.client_id, decrypt_secret(self._cipher, row), row.id)


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
