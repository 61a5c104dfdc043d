"""A call to the Web API."""

from dataclasses import dataclass
from functools import cached_property

from app.spotify.clients.endpoints import endpoint, scope

# No call is started with less time left than this.
MIN_SECONDS = 2.0


@dataclass(frozen=True)
class Call:
    """A call. `path` is percent-encoded and starts without a slash; `query` is as the caller sent it."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    content_type: str | None = None
    language: str = ""  # of Accept-Language
    etags: str = ""  # of If-None-Match

    @property
    def target(self) -> str:
        """The path and the query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def cache_key(self) -> str:
        """Everything that Spotify's response depends on, apart from the connection."""
        return f"{self.target} {self.language.lower().replace(' ', '')} {self.etags}"

    @cached_property
    def endpoint(self) -> str:
        """The endpoint's template, such as `playlists/{id}/items`."""
        return endpoint(self.path)

    @cached_property
    def scope(self) -> str:
        """The calls that a 429 in response to this one concerns."""
        return scope(self.path)

    @property
    def is_read(self) -> bool:
        """Whether the call changes nothing."""
        return self.method == "GET"

    @property
    def is_poll(self) -> bool:
        """Whether the call reads the state of the player, which pages poll."""
        return self.is_read and (self.path == "me/player" or self.path.startswith("me/player/"))
