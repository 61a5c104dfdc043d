"""api.spotify.com: the Web API, with a person's access token. All calls to it are made here."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from app.infra.http_client import HttpClient, HttpResponse, TransportError
from app.resilience.circuit_breaker import CircuitBreaker
from app.spotify.clients import metrics
from app.spotify.clients.accounts import Misconfigured, RateLimited, SpotifyError
from app.spotify.clients.call import MIN_SECONDS, Call
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from config import Config

log = logging.getLogger(__name__)

_MAX_IMAGE_PIXELS = 100_000
MAX_RESPONSE_BYTES = 8 * 1024 * 1024
CALL_SECONDS = 10.0
# A callback asks for this after it has asked for tokens, which may take 10 s, and all of it has to end
# before a proxy loses patience.
ME_SECONDS = 4.0
# A read that only shows whether Spotify refuses other calls as well.
CANARY_SECONDS = 2.0
# From Spotify's edge: it is not there. A 500 may be this one call's own trouble.
_AWAY = (502, 503, 504)
# Why no answer came, where that says nothing of whether Spotify is there.
_ONE_CALLS_OWN = ("TooBig", "InvalidURL", "InvalidHeader", "ValueError")


@dataclass(frozen=True)
class Profile:
    """Who consented. All but `spotify_id` may be missing, and may vanish for an older application."""

    spotify_id: str
    account_id: str | None
    display_name: str | None
    image_url: str | None
    product: str | None
    country: str | None


class WebApiTransportError(SpotifyError):
    """No answer came, or none is hoped for at present: try again in `retry_after` seconds."""

    def __init__(self, retry_after: int, *, not_sent: bool) -> None:
        super().__init__("no_answer")
        self.retry_after = retry_after
        self.not_sent = not_sent


class SpotifyWebApi:
    def __init__(self, config: Config, outbound: HttpClient, gate: SpotifyRateLimiter) -> None:
        self._url = config.spotify_api_url
        self._outbound = outbound
        self._gate = gate
        self._circuit = CircuitBreaker()

    def send(
        self,
        call: Call,
        access_token: str,
        *,
        link_id: int | None = None,
        within: float = CALL_SECONDS,
        deadline: float | None = None,
    ) -> HttpResponse:
        """Make a call, and once more where that can do no harm: a read, or what surely was not sent.

        Any answer is returned as it came, but for a 429. The call itself takes at most `within` seconds. It
        may have to wait for its turn before, as long as the `deadline` (`time.monotonic`) allows.

        Raises:
            RateLimited: Spotify wants us to wait, or our budget is used up.
            NotAnswered: no answer within so many seconds, or none is hoped for.
        """
        wait = self._circuit.retry_after()
        if wait > 0:
            raise WebApiTransportError(math.ceil(wait), not_sent=True)
        deadline = time.monotonic() + within if deadline is None else deadline
        self._wait_for_turn(call, link_id, deadline - MIN_SECONDS)
        within = min(within, max(1.0, deadline - time.monotonic()))
        ends = time.monotonic() + within
        try:
            answer = self._once(call, access_token, link_id, within)
        except WebApiTransportError as error:
            left = ends - time.monotonic()
            if not (call.is_read or error.not_sent) or left < within / 2:
                raise
            self._wait_for_turn(call, link_id)
            return self._once(call, access_token, link_id, left)
        left = ends - time.monotonic()
        if not call.is_read or answer.status not in (500, *_AWAY) or answer.retry_after or left < within / 2:
            return answer
        try:
            self._wait_for_turn(call, link_id)
            return self._once(call, access_token, link_id, left)
        except (WebApiTransportError, RateLimited):
            return answer

    def _wait_for_turn(self, call: Call, link_id: int | None, until: float = 0.0) -> None:
        self._gate.pass_or_refuse(link_id, is_poll=call.is_poll, scope=call.scope, until=until)

    def _once(self, call: Call, access_token: str, link_id: int | None, within: float) -> HttpResponse:
        answer = self._exchange(call, access_token, link_id, within)
        if answer.status == 429:
            raise RateLimited(self._refused(call, answer, access_token))
        return answer

    def _refused(self, call: Call, answer: HttpResponse, access_token: str) -> int:
        """Find out what a 429 is about. Returns the seconds that this call has to wait."""
        refusal = self._gate.refused(call.scope, answer)
        if not refusal.asks_for_canary:
            return refusal.seconds
        try:
            canary = self._exchange(Call("GET", "me"), access_token, None, CANARY_SECONDS)
        except WebApiTransportError:
            return refusal.seconds
        if canary.status == 200:
            self._gate.refuses_alone(call.scope)
        if canary.status != 429:
            return refusal.seconds
        return max(refusal.seconds, self._gate.close(canary))

    def _exchange(self, call: Call, access_token: str, link_id: int | None, within: float) -> HttpResponse:
        headers = {"Authorization": f"Bearer {access_token}", "Accept": "application/json"}
        if call.content_type is not None:
            headers["Content-Type"] = call.content_type
        if call.language:
            headers["Accept-Language"] = call.language
        began, status = time.perf_counter(), "none"
        try:
            answer = self._outbound.send(
                call.method,
                f"{self._url}/{call.target}",
                timeout=within,
                max_bytes=MAX_RESPONSE_BYTES,
                headers=headers,
                data=call.body or None,
            )
            status = str(answer.status)
        except TransportError as error:
            if str(error) not in _ONE_CALLS_OWN:
                self._note_failure(link_id, str(error))
            raise WebApiTransportError(1, not_sent=error.not_sent) from error
        finally:
            metrics.count_call(call, status, time.perf_counter() - began)
        if answer.status in _AWAY:
            self._note_failure(link_id, f"status_{answer.status}")
        else:
            self._circuit.record_success()
        return answer

    def _note_failure(self, link_id: int | None, reason: str) -> None:
        if self._circuit.record_failure(link_id):
            log.error("web_api_unavailable", extra={"reason": reason})

    @property
    def is_away(self) -> bool:
        """Whether calls fail at present, so that what leads to one had better not be started."""
        return self._circuit.is_open

    def me(self, access_token: str) -> Profile:
        """Whose token this is: `GET /me`, which needs no scope.

        Raises:
            Misconfigured: 403; in development mode a person who is not on the application's
                allowlist gets this far and no further.
            SpotifyError: anything else.
        """
        answer = self.send(Call("GET", "me"), access_token, within=ME_SECONDS)
        if answer.status == 403:
            raise Misconfigured("refused_by_web_api")
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
    """The widest image that has a width, or otherwise the first one that can be shown."""
    found = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    usable = [(_width(image.get("width")), url) for image in found if (url := _image_url(image.get("url")))]
    # Of equal widths, `max` takes the first.
    return max(usable, key=lambda image: image[0], default=(0, None))[1]


def _image_url(value: object) -> str | None:
    url = _text(value, 2048)
    return url if url is not None and url.lower().startswith(("https://", "http://")) else None


def _width(value: object) -> float:
    """A width in pixels, which may be written as text; 0 where there is none that an image can have."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_IMAGE_PIXELS:
        return 0
    return value
