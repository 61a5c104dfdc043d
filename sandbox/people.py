"""The people who live in the sandbox. All are invented."""

from __future__ import annotations

from dataclasses import dataclass


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
        return self.display_name or self.id

    @property
    def premium(self) -> bool:
        return self.product == "premium"


def everybody() -> list[Person]:
    """Fresh copies of all people, in the order the consent page shows them."""
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
