"""Errors of calls to Spotify.

SpotifyError               the call failed; trying again later may help
├── SpotifyTransportError  no usable reply arrived
├── InvalidGrant           the code or refresh token is used, revoked, or expired
├── Misconfigured          Spotify rejects this application, or the person is not on its allowlist
└── RateLimited            Spotify asks us to wait
"""


class SpotifyError(Exception):
    """Spotify rejected a call, or did not respond usably. It may succeed after `retry_after` seconds.

    `refresh_token` is a new one that came with a reply that is otherwise unusable.
    """

    def __init__(self, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.refresh_token: str | None = None


class SpotifyTransportError(SpotifyError):
    """No usable reply arrived. With `not_sent`, Spotify has not seen the request.

    Then a code or token in it can be used again, and a write has had no effect.
    """

    def __init__(self, *, not_sent: bool, retry_after: int | None = None) -> None:
        super().__init__("transport_error", retry_after=retry_after)
        self.not_sent = not_sent


class InvalidGrant(SpotifyError):
    """The code or refresh token is used, revoked, or expired. Trying again is useless."""

    def __init__(self) -> None:
        super().__init__("invalid_grant")


class Misconfigured(SpotifyError):
    """Spotify rejects this application, or a person who is not on its allowlist.

    `description` is Spotify's, which may be reworded at any time.
    """

    def __init__(self, reason: str, description: object = None) -> None:
        super().__init__(reason)
        self.description = description


class RateLimited(SpotifyError):
    """Spotify asks us to wait."""

    def __init__(self, retry_after: int | None) -> None:
        super().__init__("rate_limited", retry_after=retry_after)
