"""What identifies an application to Spotify."""

from dataclasses import dataclass, field
from enum import StrEnum

from app.settings.rules import lacks_application
from config import Config


class ApplicationKind(StrEnum):
    """Whose application it is."""

    DEPLOYMENT = "deployment"
    OWN = "own"  # a user has registered it

    @classmethod
    def of(cls, client_id: str | None) -> "ApplicationKind":
        """Return the kind of the application that a grant's `client_id` names."""
        return cls.DEPLOYMENT if client_id is None else cls.OWN


ALL_KINDS = frozenset(ApplicationKind)


@dataclass(frozen=True)
class Application:
    """An application at Spotify.

    Without a secret, it is a public client: it identifies itself by its `client_id` only, and relies on PKCE
    (RFC 6749 section 2.1, RFC 7636). `id` is that of its row, or None for the deployment's.
    `stored_secret` is the secret as the row has it: encrypted, and different after each registration.
    """

    client_id: str
    client_secret: str | None = field(repr=False)
    id: int | None = None
    stored_secret: bytes | None = field(default=None, repr=False)

    @property
    def own_client_id(self) -> str | None:
        """The client id as grants have it: None if it is the deployment's."""
        return None if self.id is None else self.client_id


def deployment_application(config: Config) -> Application | None:
    """Return the deployment's application, for everyone who has not registered one. It may have none."""
    if lacks_application(config):
        return None
    return Application(config.spotify_client_id, config.spotify_client_secret)
