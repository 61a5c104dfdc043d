"""Calls to Spotify: the one client everything outbound goes through.

No redirects (a 307 would carry a refresh token to another host), no proxies or `.netrc` from
the environment, no cookies, a deadline for the whole call and a cap on the answer's size.
"""

import http.client
import io
import json
import math
import re
import socket
import threading
import time
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from werkzeug.http import parse_date

from app.clock import utc_now

CONNECT_SECONDS = 3.0
FIRST_BYTE_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_ANSWER_BYTES = 1024 * 1024


class NoAnswer(Exception):
    """No usable answer came: not connected, cut off, too slow, too big, or a broken certificate.

    `unsent` says that nothing of the request can have reached the other side.
    """

    def __init__(self, reason: str, *, unsent: bool = False) -> None:
        super().__init__(reason)
        self.unsent = unsent


@dataclass(frozen=True)
class Answer:
    """What came back: the status, the headers (names in lower case) and the raw body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; an empty one if it is anything else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def retry_after(self) -> int | None:
        """Whole seconds to wait, if the answer says so."""
        return retry_after(self.headers.get("retry-after", ""), since=self.headers.get("date", ""))


def retry_after(value: str, *, since: str = "") -> int | None:
    """Read a Retry-After header: seconds, rounded up, or None if it makes no sense.

    `since` is the response's own Date header: a date is measured from it, so that a clock that differs
    from the server's makes no difference. A date in the past means no wait at all.

    Source: RFC 9110 section 10.2.3. Some servers send fractions of a second.
    """
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{0,9})?", value):
        return math.ceil(float(value))
    until = parse_date(value) if value[:1].isalpha() else None
    if until is None:
        return None
    return max(0, math.ceil((until - (parse_date(since) or utc_now())).total_seconds()))


class Outbound:
    """Sends requests and reads whole answers within `TOTAL_SECONDS`. Safe to share between threads."""

    def __init__(self) -> None:
        self._session = _Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _DeadlineAdapter(pool_connections=4, pool_maxsize=64, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._session.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        within: float | None = None,
        most: int = MAX_ANSWER_BYTES,
        **request: Any,
    ) -> Answer:
        """Send one request; keyword arguments are those of `requests.Session.request`.

        The whole answer has to arrive `within` so many seconds (`TOTAL_SECONDS`), and be `most` bytes long.

        Raises:
            NoAnswer: whatever kept a whole answer from arriving. The request may have had its effect.
        """
        within = TOTAL_SECONDS if within is None else within
        _deadline.at = time.monotonic() + within
        try:
            with self._session.request(
                method,
                url,
                allow_redirects=False,
                stream=True,
                timeout=(min(CONNECT_SECONDS, within), min(FIRST_BYTE_SECONDS, within)),
                **request,
            ) as response:
                body = _read_body(response, most)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            # ValueError: broken framing or headers that the libraries let through as such.
            raise NoAnswer(type(error).__name__, unsent=_is_unsent(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, body)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No answer is a redirect to us. Asked not to follow one, requests still reads all of its body."""


def _is_unsent(error: Exception) -> bool:
    """Whether it failed before there was a connection. One that was kept and has gone may have taken it.

    An error of TLS tells nothing: it may come while the answer is read.
    """
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(cause, NewConnectionError | ConnectTimeoutError)


def _read_body(response: requests.Response, most: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(16_384):
        body += chunk
        if len(body) > most:
            raise NoAnswer("TooBig")
    return bytes(body)


# The deadline of the call that this thread is making. A connection is taken from the pool inside
# `Session.request`, where nothing of ours can be passed in.
_deadline = threading.local()


class _DeadlineReader(io.RawIOBase):
    """Reads that end at the call's deadline, however slowly the other side drips.

    A socket's own time-out begins anew with every byte received, so it bounds nothing.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _deadline.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the call's deadline has passed")
        self._sock.settimeout(min(left, FIRST_BYTE_SECONDS))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock))

    def begin(self) -> None:
        """Read up to the answer's body. http.client takes `103 Early Hints` for the answer, and whoever
        uses the connection next would get the one behind it: another person's."""
        super().begin()
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _DeadlineHTTPConnection(HTTPConnection):
    response_class = _DeadlineResponse


class _DeadlineHTTPSConnection(HTTPSConnection):
    response_class = _DeadlineResponse


class _DeadlineAdapter(HTTPAdapter):
    """Gives every pool the connections above."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _DeadlineHTTPSConnection if pool.scheme == "https" else _DeadlineHTTPConnection
        return pool
