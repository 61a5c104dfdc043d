"""api.spotify.com: the Web API, with a person's access token."""

from dataclasses import dataclass
from typing import Any

from app.outbound import NoAnswer, Outbound
from app.spotify.accounts import Misconfigured, RateLimited, SpotifyError
from config import Config


@dataclass(frozen=True)
class Profile:
    """Who consented. All but `spotify_id` may be missing, and may vanish for an older application."""

    spotify_id: str
    account_id: str | None
    display_name: str | None
    image_url: str | None
    product: str | None
    country: str | None


# A callback asks for this after it has asked for tokens, which may take 10 s, and all of it has to end
# before a proxy loses patience.
ME_SECONDS = 4.0


class SpotifyWebApi:
    def __init__(self, config: Config, outbound: Outbound) -> None:
        self._config = config
        self._outbound = outbound

    def me(self, access_token: str) -> Profile:
        """Whose token this is: `GET /me`, which needs no scope.

        Raises:
            Misconfigured: 403; in development mode a person who is not on the application's
                allowlist gets this far and no further.
            SpotifyError: anything else.
        """
        try:
            answer = self._outbound.send(
                "GET",
                f"{self._config.spotify_api_url}/me",
                within=ME_SECONDS,
                headers={"Authorization": f"Bearer {access_token}", "Accept": "application/json"},
            )
        except NoAnswer as error:
            raise SpotifyError("no_answer") from error
        if answer.status == 403:
            raise Misconfigured("refused_by_web_api")
        if answer.status == 429:
            raise RateLimited(answer.retry_after)
        body = answer.json_object()
        spotify_id = _text(body.get("id"), 255)
        if answer.status != 200 or spotify_id is None:
            raise SpotifyError(f"status_{answer.status}")
        return Profile(
            spotify_id=spotify_id,
            account_id=_text(body.get("account_id"), 255),
            display_name=_text(body.get("display_name"), 255),
            image_url=_widest_image(body.get("images")),
            product=_text(body.get("product"), 32),
            country=_text(body.get("country"), 8),
        )


def _text(value: object, most: int) -> str | None:
    """A text that our columns can hold; half a surrogate pair (`"\\ud83d"`) is none."""
    if not isinstance(value, str) or not 0 < len(value) <= most:
        return None
    return None if any("\ud800" <= character <= "\udfff" for character in value) else value


def _widest_image(images: Any) -> str | None:
    """The first image: Spotify lists the widest first."""
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return None
    url = _text(images[0].get("url"), 2048)
    return url if url is not None and url.startswith(("https://", "http://")) else None
