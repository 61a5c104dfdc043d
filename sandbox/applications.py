"""The applications that Spotify's dashboard manages, and what they may do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from sandbox.people import Person
from sandbox.redirects import is_insecure, is_malformed
from sandbox.settings import BadRequestBody

DEVELOPMENT, EXTENDED = "development", "extended"
QUOTAS = (DEVELOPMENT, EXTENDED)
MAX_USERS = 5
"""How many people an application in development mode serves, including its owner."""
MAX_TEXT = 255
"""The longest client id, secret, name, and email address."""
MAX_REDIRECT_URIS = 50
MAX_URI = 1000
_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass
class Application:
    """An application. As on Spotify, each has a secret, and a public client does not send it."""

    client_id: str
    secret: str
    redirect_uris: tuple[str, ...] = ()
    name: str = "Your app"
    description: str = ""
    owner: str = ""
    """The account id of the person who created it."""
    quota: str = DEVELOPMENT
    """`development`: for its owner and four others; `extended`: for everyone."""
    users: list[str] = field(default_factory=list)
    """The email addresses in its user management. The owner's is not needed."""

    def allows(self, person: Person) -> bool:
        """Return whether the person may use the application."""
        return self.quota == EXTENDED or person.account_id == self.owner or person.email in self.users

    def require_room_for(self, people: int) -> None:
        """Raise BadRequestBody unless that many more people may use the application."""
        owner = 1 if self.owner else 0
        if self.quota == DEVELOPMENT and owner + len(self.users) + people > MAX_USERS:
            raise BadRequestBody(f"in development mode, an application has {MAX_USERS} people at most")

    def admit(self, people: list[Person]) -> None:
        """Allow these people. The first one becomes the owner if there is none."""
        if not self.owner:
            self.owner, people = people[0].account_id, people[1:]
        self.users += [person.email for person in people]

    def as_json(self, owner: str | None) -> dict[str, Any]:
        """Return the application with its secret. `owner` is the owner's current id."""
        return {
            "client_id": self.client_id,
            "client_secret": self.secret,
            "name": self.name,
            "description": self.description,
            "owner": owner,
            "redirect_uris": list(self.redirect_uris),
            "quota": self.quota,
            "users": list(self.users),
        }


def new_credential() -> str:
    """Return a new client id or secret: 32 hex digits, as Spotify's."""
    return secrets.token_hex(16)


class Applications:
    """All applications by client id. The first one comes from the command line."""

    def __init__(self, first: Application) -> None:
        self.first = deepcopy(first)
        self._by_client_id = {self.first.client_id: self.first}

    def __iter__(self) -> Iterator[Application]:
        return iter(self._by_client_id.values())

    def __len__(self) -> int:
        return len(self._by_client_id)

    def get(self, client_id: str | None) -> Application | None:
        """Return the application with this client id."""
        return self._by_client_id.get(client_id or "")

    def add(self, application: Application) -> Application:
        """Add an application.

        Raises:
            BadRequestBody: If the client id is in use.
        """
        if application.client_id in self._by_client_id:
            raise BadRequestBody("client_id is in use")
        self._by_client_id[application.client_id] = application
        return application

    def remove(self, application: Application) -> None:
        """Delete the application. Its grants stay, but no longer work."""
        del self._by_client_id[application.client_id]


def set_members(application: Application, members: dict[str, Any]) -> None:
    """Change all of these members of the application, or none.

    Raises:
        BadRequestBody: If one is invalid.
    """
    for name, value in members.items():
        expected = _CHECKS[name](value)
        if expected:
            raise BadRequestBody(f"{name} must be {expected}")
    quota, users = members.get("quota", application.quota), members.get("users", application.users)
    if quota == DEVELOPMENT and len(users) >= MAX_USERS:
        raise BadRequestBody(f"in development mode, users must be at most {MAX_USERS - 1} besides the owner")
    for name, value in members.items():
        setattr(application, name, tuple(value) if name == "redirect_uris" else value)


def problem_with_redirect_uri(uri: str) -> str | None:
    """Return why Spotify's dashboard refuses to register this URI, or None."""
    if not uri.isprintable() or " " in uri or is_malformed(uri) or len(uri) > MAX_URI:
        return "This redirect URI is not valid."
    if is_insecure(uri):
        return "This redirect URI is not secure. Use https, or http with 127.0.0.1 or [::1]."
    return None


def _text(value: Any) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()
    return None if fits else f"1 to {MAX_TEXT} printable characters"


def _client_id(value: Any) -> str | None:
    fits = isinstance(value, str) and _CLIENT_ID.fullmatch(value)
    return None if fits else f"1 to {MAX_TEXT} letters, digits, underscores, and hyphens"


def _description(value: Any) -> str | None:
    return None if value == "" else _text(value)


def _redirect_uris(value: Any) -> str | None:
    fits = (
        isinstance(value, list | tuple)
        and len(value) <= MAX_REDIRECT_URIS
        and all(isinstance(uri, str) and problem_with_redirect_uri(uri) is None for uri in value)
    )
    return None if fits else "a list of redirect URIs with https, or http and a loopback IP literal"


def _users(value: Any) -> str | None:
    fits = isinstance(value, list) and all(is_email(email) for email in value)
    return None if fits and len(set(value)) == len(value) else "a list of different email addresses"


def is_email(value: object) -> bool:
    """Return whether the value looks like an email address."""
    return _text(value) is None and 0 < str(value).find("@") < len(str(value)) - 1 and " " not in str(value)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "client_id": _client_id,
    "secret": _text,
    "name": _text,
    "description": _description,
    "redirect_uris": _redirect_uris,
    "quota": lambda value: None if value in QUOTAS else f"one of {', '.join(QUOTAS)}",
    "users": _users,
}
