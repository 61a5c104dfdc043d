"""The sandbox's people. All are invented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from sandbox.catalog import base62_id

ACCOUNT_ID_LENGTH = 10


@dataclass
class Person:
    """A Spotify account. `account_id` never changes; `id` may, as on Spotify."""

    id: str
    account_id: str
    display_name: str | None
    product: str
    country: str
    email: str
    followers: int
    has_image: bool
    about: str
    """One line for the consent page."""

    @property
    def name(self) -> str:
        """The display name, or the id without one."""
        return self.display_name or self.id

    @property
    def premium(self) -> bool:
        """Whether the account has Premium."""
        return self.product == "premium"


def default_people() -> list[Person]:
    """Return fresh copies of the default people, in the order of the consent page."""
    return [
        Person(
            "mira_t_42", "k7Zp2Qw9Lm", "Mira T.", "premium", "AT", "mira@example.com", 42, True,
            "Premium, listening in the kitchen",
        ),
        Person(
            "jonas.k", "c3Xv8Tn1Rb", "Jonas K.", "free", "DE", "jonas.k@example.com", 7, True,
            "Free, so no player commands",
        ),
        Person(
            "aiko-87", "w5Hs6Yd4Pq", None, "premium", "JP", "aiko@example.com", 0, False,
            "Premium, no name, no device on",
        ),
        Person(
            "31xk4zq7w5m2", "n9Fj0Gc3Ua", "Ødegård & Söhne 🎻", "premium", "NO", "post@example.com", 1318,
           True,            "Premium, paused in the living room",
        ),
    ]  # fmt: skip


def _seeded_person(number: int) -> Person:
    person_id = f"seed-{number:05}"
    account_id = base62_id(f"person {person_id}")[:ACCOUNT_ID_LENGTH]
    return Person(
        person_id, account_id, f"Seed {number}", "premium", "SE", f"{person_id}@example.com", 0, False,
        "Premium, made for a test",
    )  # fmt: skip


class People:
    """All people, by account id and by current id."""

    def __init__(self) -> None:
        self.defaults = default_people()
        """The default people. Seeded people are neither listed on pages nor saved."""
        self._by_account: dict[str, Person] = {}
        self._by_id: dict[str, Person] = {}
        self._numbers = count(1)
        for person in self.defaults:
            self._add(person)

    def _add(self, person: Person) -> None:
        self._by_account[person.account_id] = person
        self._by_id[person.id] = person

    def __iter__(self) -> Iterator[Person]:
        return iter(self._by_account.values())

    def __len__(self) -> int:
        return len(self._by_account)

    def of_account(self, account_id: str | None) -> Person | None:
        """Return the person with this account id."""
        return self._by_account.get(account_id or "")

    def named(self, person_id: str) -> Person | None:
        """Return the person who has this id now."""
        return self._by_id.get(person_id)

    def id_of(self, account_id: str | None) -> str | None:
        """Return the current id of an account."""
        person = self.of_account(account_id)
        return person.id if person else None

    def rename(self, person: Person, new_id: str) -> None:
        # While a file is loaded, another person may already have this id.
        """Give a person a new id."""
        if self._by_id.get(person.id) is person:
            del self._by_id[person.id]
        person.id = new_id
        self._by_id[new_id] = person

    def seed(self, how_many: int) -> list[Person]:
        """Create that many people, skipping ids that are in use."""
        new_people: list[Person] = []
        while len(new_people) < how_many:
            person = _seeded_person(next(self._numbers))
            if person.id not in self._by_id:
                self._add(person)
                new_people.append(person)
        return new_people
