"""A player whose position follows from the clock, without a timer."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox import items

MAX_HISTORY = 50


@dataclass
class Device:
    """A device that can play."""

    id: str
    name: str
    kind: str
    volume: int
    supports_volume: bool = True


@dataclass
class Play:
    """A track or episode that was played, and when."""

    uri: str
    played_at_ms: int
    context: str | None


@dataclass
class Player:
    """One person's player. Times are milliseconds of the sandbox clock; call `settle` before reading."""

    devices: list[Device]
    active: str | None = None
    context: str | None = None
    uris: list[str] = field(default_factory=list)
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
        """Return a device by id."""
        return next((device for device in self.devices if device.id == device_id), None)

    def settle(self, now_ms: int) -> None:
        """Advance the player to `now_ms`, moving on to the next tracks as they end."""
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
                self._start_next()

    def _skip_whole_rounds(self) -> None:
        """Skip whole rounds through the context: after months there would be thousands to play."""
        if self.repeat == "track":
            self.progress_ms %= 2 * self._duration()
        elif self.repeat == "context" and self.uris:
            one_round = sum(items.duration_ms(uri) for uri in self.uris)
            if self.progress_ms > 3 * one_round and not self.queue:
                self.progress_ms = one_round + self.progress_ms % one_round

    def _duration(self) -> int:
        return items.duration_ms(self.current) if self.current else 0

    def _remember(self, at_ms: int) -> None:
        if self.current:
            self.history.insert(0, Play(self.current, at_ms, self.context))
            del self.history[MAX_HISTORY:]

    def _start_next(self) -> None:
        """Play the queue, then the context. At its end, stop at its first track."""
        if self.queue:
            self.current = self.queue.pop(0)
            return
        self.index += 1
        if self.index >= len(self.uris):
            self.index = 0
            if self.repeat != "context":
                self.is_playing, self.progress_ms = False, 0
        self.current = self.uris[self.index] if self.uris else None

    def start(self, uris: list[str], index: int, context: str | None, position_ms: int = 0) -> None:
        """Start playing a context."""
        self.uris, self.index, self.context = uris, index, context
        self.current = uris[index]
        self.progress_ms, self.is_playing = position_ms, True

    def skip(self) -> None:
        """Skip to the next track."""
        self._remember(self.as_of_ms)
        self.progress_ms = 0
        self.is_playing = True
        self._start_next()

    def back(self) -> None:
        """Skip to the previous track, or restart the first one."""
        self.index = max(0, self.index - 1)
        self.progress_ms, self.is_playing = 0, True
        self.current = self.uris[self.index] if self.uris else self.current

    def upcoming(self) -> list[str]:
        """Return the queue, then the rest of the context: at most 20 tracks, as Spotify does."""
        return [*self.queue, *self.uris[self.index + 1 :]][:20]
