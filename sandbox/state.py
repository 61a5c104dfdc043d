"""The state of the sandbox."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from typing import Any

from sandbox.applications import Application, Applications
from sandbox.clock import Clock
from sandbox.faults import FaultRegistry
from sandbox.grants import Grants
from sandbox.journal import Journal
from sandbox.music import Music
from sandbox.people import People, Person
from sandbox.settings import BadRequestBody, Settings


class Sandbox:
    """The state of one sandbox. Views run one at a time under `lock`; delays happen outside it."""

    def __init__(self, first: Application) -> None:
        self._first = first
        self.lock = threading.RLock()
        self.clock = Clock()
        self.faults = FaultRegistry()
        self.journal = Journal()
        self._start_over()

    def _start_over(self) -> None:
        self.settings = Settings()
        self.grants = Grants()
        self.people = People()
        self.applications = Applications(self._first)
        self.applications.first.owner = self.people.defaults[0].account_id
        self.signed_in: dict[str, str] = {}
        self.music = Music(self.clock)

    def reset(self) -> None:
        """Restore the initial state. Held calls go on."""
        with self.lock:
            self.faults.clear()
            self.clock.set_offset(0)
            self.journal.clear()
            self._start_over()

    def rename(self, person: Person, new_id: str) -> None:
        """Give a person a new id.

        Raises:
            BadRequestBody: If the id is empty, contains a slash, or is in use.
        """
        if not new_id or "/" in new_id or self.people.named(new_id):
            raise BadRequestBody("id must be new, not empty, and without a slash")
        if self.settings.auto_consent == person.id:
            self.settings.auto_consent = new_id
        self.people.rename(person, new_id)

    def sign_in(self, person: Person) -> str:
        """Sign a browser in. Returns the value of its cookie."""
        cookie = secrets.token_urlsafe(24)
        self.signed_in[cookie] = person.account_id
        return cookie

    def person_signed_in_with(self, cookie: str | None) -> Person | None:
        """Return the person who is signed in with this cookie."""
        return self.people.of_account(self.signed_in.get(cookie or ""))

    def people_as_json(self, people: Iterable[Person]) -> list[dict[str, Any]]:
        """Return people as JSON, with the number of their grants."""
        return [
            {
                "id": person.id,
                "account_id": person.account_id,
                "display_name": person.display_name,
                "product": person.product,
                "country": person.country,
                "email": person.email,
                "grants": self.grants.count_active(person.account_id),
            }
            for person in people
        ]
