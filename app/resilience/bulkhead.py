"""A bulkhead: callers of a slow Spotify hold some of a worker's threads, and never all of them."""

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class BulkheadFull(Exception):
    """The bulkhead is full, or nothing became free in time."""


@dataclass(eq=False)
class Ticket:
    """One caller's hold on a thread, with or without a place."""

    caller: Hashable
    has_place: bool = False
    wants_place: bool = False
    is_dismissed: bool = False
    """Another caller needed the thread more. Whoever holds the ticket must stop waiting."""


class Bulkhead:
    """Limits the calls under way (`places`, of which one caller may have half) and the callers in the queue.

    Queued callers hold threads too, for which a worker has threads to spare (`pool_size`). One caller may
    fill the queue as long as nobody else needs it; then its newest requests make room.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._places_each = max(1, places // 2)
        self._most = places + queue
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []  # in the order of arrival

    @contextmanager
    def ticket(self, caller: Hashable) -> Iterator[Ticket]:
        """Hold a thread while the block runs.

        Raises:
            NoPlace: no thread is left, and this caller holds its fair share of them.
        """
        ticket = Ticket(caller)
        with self._changed:
            if len(self._tickets) >= self._most:
                self._make_room_for(caller)
            self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                ticket.has_place = False
                if ticket in self._tickets:
                    self._tickets.remove(ticket)
                self._changed.notify_all()

    @contextmanager
    def place(self, caller: Hashable, *, until: float = 0.0) -> Iterator[None]:
        """Hold a place while the block runs. `until`: how long to wait for one (`time.monotonic`).

        Raises:
            NoPlace: the bulkhead is full, or no place became free in time.
        """
        with self.ticket(caller) as ticket:
            self.take_place(ticket, until=until)
            yield

    def take_place(self, ticket: Ticket, *, until: float = 0.0) -> None:
        """Give the ticket a place, unless it has one. `until`: how long to wait for it (`time.monotonic`).

        Raises:
            NoPlace: none became free in time, or another caller needed the thread more.
        """
        with self._changed:
            ticket.wants_place = not ticket.has_place
            try:
                while ticket.wants_place and self._next() is not ticket:
                    left = until - time.monotonic()
                    if ticket.is_dismissed or left <= 0:
                        raise BulkheadFull
                    self._changed.wait(left)
                ticket.has_place = True
            finally:
                ticket.wants_place = False
                self._changed.notify_all()

    def give_place_back(self, ticket: Ticket) -> None:
        """Let others have the ticket's place, but keep the thread."""
        with self._changed:
            ticket.has_place = False
            self._changed.notify_all()

    def _next(self) -> Ticket | None:
        """Return the ticket that may have the next place: of the caller with the fewest, the oldest."""
        places = Counter(ticket.caller for ticket in self._tickets if ticket.has_place)
        if places.total() >= self._places:
            return None
        waiting = [
            ticket
            for ticket in self._tickets
            if ticket.wants_place and places[ticket.caller] < self._places_each
        ]
        return min(waiting, key=lambda ticket: places[ticket.caller], default=None)

    def _make_room_for(self, caller: Hashable) -> None:
        """Dismiss the newest waiting ticket of the caller that holds the most threads.

        Raises:
            NoPlace: `caller` would hold as many itself.
        """
        held = Counter(ticket.caller for ticket in self._tickets)
        waiting = [ticket for ticket in self._tickets if not ticket.has_place]
        victim = max(reversed(waiting), key=lambda ticket: held[ticket.caller], default=None)
        if victim is None or held[victim.caller] <= held[caller] + 1:
            raise BulkheadFull
        victim.is_dismissed = True
        self._tickets.remove(victim)
        self._changed.notify_all()
