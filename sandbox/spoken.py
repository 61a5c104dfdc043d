"""The sandbox's shows and audiobooks. All are invented, and constant."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.catalog import base62_id


@dataclass(frozen=True)
class Series:
    """A show or an audiobook."""

    id: str
    name: str
    kind: str
    author: str
    """The publisher of a show, or the author of an audiobook."""
    part_ids: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """An episode or a chapter."""

    id: str
    name: str
    series_id: str
    number: int
    duration_ms: int
    released: str


# Kind, name, and author, then title and minutes of each part.
_SERIES: list[tuple[str, str, str, list[tuple[str, int]]]] = [
    ("show", "Night Ferries", "Harbour Radio", [
        ("The Last Car Aboard", 31), ("Fog Signals", 27), ("A Cook at Sea", 44),
    ]),
    ("show", "Compost Hour", "Allotment FM", [("Worms, Again", 52), ("Rhubarb in April", 38)]),
    ("audiobook", "The Keeper's Ledger", "Ida Strand", [
        ("Oil", 21), ("Glass", 33), ("Weather", 29), ("Relief", 18),
    ]),
    ("audiobook", "A Short History of Buttons", "Emil Faber", [("Bone", 40), ("Brass", 35)]),
]  # fmt: skip

SHOWS: dict[str, Series] = {}
EPISODES: dict[str, Part] = {}
AUDIOBOOKS: dict[str, Series] = {}
CHAPTERS: dict[str, Part] = {}


def _fill() -> None:
    for kind, name, author, titles in _SERIES:
        series_id = base62_id(f"{kind} {name}")
        parts = [
            Part(
                base62_id(f"{kind} {name} {title}"), title, series_id, number, minutes * 60_000, "2025-10-02"
            )
            for number, (title, minutes) in enumerate(titles, 1)
        ]
        series, by_id = (SHOWS, EPISODES) if kind == "show" else (AUDIOBOOKS, CHAPTERS)
        series[series_id] = Series(series_id, name, kind, author, tuple(part.id for part in parts))
        by_id.update({part.id: part for part in parts})


_fill()
