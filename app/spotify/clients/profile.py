"""Parse a person's profile, as `GET /me` returns it."""

from dataclasses import dataclass
from typing import Any

_MAX_IMAGE_PIXELS = 100_000


@dataclass(frozen=True)
class Profile:
    """The person who consented. Spotify can omit everything but `spotify_id`."""

    spotify_id: str
    account_id: str | None
    display_name: str | None
    image_url: str | None
    product: str | None
    country: str | None


def parse_profile(body: dict[str, Any]) -> Profile | None:
    """Return the profile in a response, or None if it has no usable id."""
    spotify_id = _text(body.get("id"), 255)
    if spotify_id is None:
        return None
    return Profile(
        spotify_id=spotify_id,
        account_id=_text(body.get("account_id"), 255),
        display_name=_text(body.get("display_name"), 255),
        image_url=_widest_image(body.get("images")),
        product=_text(body.get("product"), 32),
        country=_text(body.get("country"), 8),
    )


def _text(value: object, max_length: int) -> str | None:
    """Return a text if our columns can store it: they reject half of a surrogate pair."""
    if not isinstance(value, str) or not 0 < len(value) <= max_length:
        return None
    return None if any("\ud800" <= character <= "\udfff" for character in value) else value


def _widest_image(images: object) -> str | None:
    """Return the URL of the widest image, or of the first usable one if no image has a width."""
    found = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    usable = [(_width(image.get("width")), url) for image in found if (url := _image_url(image.get("url")))]
    # Of equal widths, `max` takes the first.
    return max(usable, key=lambda image: image[0], default=(0, None))[1]


def _image_url(value: object) -> str | None:
    url = _text(value, 2048)
    return url if url is not None and url.lower().startswith(("https://", "http://")) else None


def _width(value: object) -> float:
    """Return a width in pixels, which may be sent as text, or 0 if it is not plausible."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_IMAGE_PIXELS:
        return 0
    return value
