"""A call to the Web API."""

from dataclasses import dataclass

from app.spotify.clients.endpoints import endpoint, scope

# No call is started with less time left than this.
MIN_SECONDS = 2.0


@dataclass(frozen=True)
class Call:
    """One call: `path` is percent-encoded and begins without a slash, `query` is as it was sent."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    content_type: str | None = None
    language: str = ""
    """The Accept-Language header; empty if there is none."""

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def cache_key(self) -> str:
        """What makes two reads of one connection the same: everything that Spotify's response depends on."""
        return f"{self.target} {self.language.lower().replace(' ', '')}"

    @property
    def endpoint(self) -> str:
        return endpoint(self.path)

    @property
    def scope(self) -> str:
        """What a 429 in response to this call is about."""
        return scope(self.path)

    @property
    def is_read(self) -> bool:
        return self.method == "GET"

    @property
    def is_poll(self) -> bool:
        """A read of what changes by the second, which pages ask for again and again."""
        return self.is_read and (self.path == "me/player" or self.path.startswith("me/player/"))
