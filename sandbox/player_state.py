"""A player that really plays: where it stands follows from the clock, never from a timer."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.catalogue import TRACKS

MOST_HISTORY = 50
# Further back than this, "previous" starts the track again.
RESTART_AFTER_MS = 3000


@dataclass
class Device:
    id: str
    name: str
    kind: str
    volume: int
    supports_volume: bool = True


@dataclass
class Play:
    track_id: str
    played_at_ms: int
    context: str | None


@dataclass
class Player:
    """One person's. Times are milliseconds of the sandbox clock; call `settle` before reading."""

    devices: list[Device]
    active: str | None = None
    context: str | None = None
    tracks: list[str] = field(default_factory=list)
    index: int = 0
    is_playing: bool = False
    progress_ms: int = 0
    as_of_ms: int = 0
    shuffle: bool = False
    repeat: str = "off"
    queue: list[str] = field(default_factory=list)
    current: str | None = None
    history: list[Play] = field(default_factory=list)

    def device(self, device_id: str) -> Device | None:
        return next((device for device in self.devices if device.id == device_id), None)

    def settle(self, now_ms: int) -> None:
        """Bring the player to `now_ms`: tracks end, the next ones start."""
        elapsed, self.as_of_ms = max(0, now_ms - self.as_of_ms), now_ms
        if not (self.is_playing and self.current):
            return
        self.progress_ms += elapsed
        self._skip_whole_rounds()
        while self.is_playing and self.progress_ms >= self._duration():
            self.progress_ms -= self._duration()
            ended_at = now_ms - self.progress_ms
            self._remember(ended_at)
            if self.repeat != "track":
                self._go_on()

    def _skip_whole_rounds(self) -> None:
        """Months may have passed: do not play each of the thousands of rounds in between."""
        if self.repeat == "track":
            self.progress_ms %= 2 * self._duration()
        elif self.repeat == "context" and self.tracks:
            one_round = sum(TRACKS[track].duration_ms for track in self.tracks)
            if self.progress_ms > 3 * one_round and not self.queue:
                self.progress_ms = one_round + self.progress_ms % one_round

    def _duration(self) -> int:
        return TRACKS[self.current].duration_ms if self.current else 0

    def _remember(self, at_ms: int) -> None:
        if self.current:
            self.history.insert(0, Play(self.current, at_ms, self.context))
            del self.history[MOST_HISTORY:]

    def _go_on(self) -> None:
        """The queue comes first, then the context; at its end the player stops on its first track."""
        if self.queue:
            self.current = self.queue.pop(0)
            return
        self.index += 1
        if self.index >= len(self.tracks):
            self.index = 0
            if self.repeat != "context":
                self.is_playing, self.progress_ms = False, 0
        self.current = self.tracks[self.index] if self.tracks else None

    def start(self, tracks: list[str], index: int, context: str | None, position_ms: int = 0) -> None:
        self.tracks, self.index, self.context = tracks, index, context
        self.current = tracks[index]
        self.progress_ms, self.is_playing = position_ms, True

    def skip(self) -> None:
        self._remember(self.as_of_ms)
        self.progress_ms = 0
        self.is_playing = True
        self._go_on()

    def back(self) -> None:
        if self.progress_ms <= RESTART_AFTER_MS and self.index > 0:
            self.index -= 1
        self.progress_ms, self.is_playing = 0, True
        self.current = self.tracks[self.index] if self.tracks else self.current

    def upcoming(self) -> list[str]:
        """The queue, then the rest of the context; at most 20, as Spotify shows."""
        return [*self.queue, *self.tracks[self.index + 1 :]][:20]
