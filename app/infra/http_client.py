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
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError
from urllib3.response import HTTPResponse
from werkzeug.http import parse_date

from app.infra import sockets
from app.infra.clock import utc_now
from app.infra.staleness import IDLE_SECONDS

CONNECT_SECONDS = 3.0  # for name lookup and all addresses, and as long again for the TLS handshake
FIRST_BYTE_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_RESPONSE_BYTES = 1024 * 1024


class TransportError(Exception):
    """No usable answer came: not connected, cut off, too slow, too big, or a broken certificate.

    `unsent` says that nothing of the request can have reached the other side; `received` is the part of the
    response body that arrived.
    """

    def __init__(self, reason: str, *, unsent: bool = False, received: bytes = b"") -> None:
        super().__init__(reason)
        self.unsent = unsent
        self.received = received


@dataclass(frozen=True)
class HttpResponse:
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


class HttpClient:
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
        most: int = MAX_RESPONSE_BYTES,
        **request: Any,
    ) -> HttpResponse:
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
            raise TransportError(type(error).__name__, unsent=_was_not_sent(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status_code, headers, body)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No answer is a redirect to us. Asked not to follow one, requests still reads all of its body."""


def _was_not_sent(error: Exception) -> bool:
    """Whether it failed before there was a connection. One that was kept and has gone may have taken it.

    An error of TLS tells nothing: it may come while the answer is read.
    """
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(cause, NewConnectionError | ConnectTimeoutError)


def _read_body(response: requests.Response, most: int) -> bytes:
    """Read the whole body and decompress it.

    Raises:
        NoAnswer: with the part that arrived.
    """
    received = bytearray()
    try:
        # `read1` returns whatever has arrived; `read` discards that when the rest does not come.
        while len(received) <= most and (data := response.raw.read1(16_384, decode_content=False)):
            received += data
        body = _decompressed(bytes(received), response, most)
    except (HTTPError, OSError, ValueError) as error:
        part = bytes(received)
        with suppress(HTTPError):
            part = _decompressed(part, response, most)
        raise TransportError(type(error).__name__, received=part) from error
    if max(len(received), len(body)) > most:
        raise TransportError("TooBig", received=body)
    return body


def _decompressed(body: bytes, response: requests.Response, most: int) -> bytes:
    """Undo the response's Content-Encoding. A result longer than `most` is cut one byte after it."""
    encoding = {"Content-Encoding": response.headers.get("Content-Encoding", "")}
    return HTTPResponse(io.BytesIO(body), headers=encoding, preload_content=False).read(most + 1)


# The deadline of the call that this thread is making. A connection is taken from the pool inside
# `Session.request`, where nothing of ours can be passed in.
_deadline = threading.local()


def _time_left() -> float:
    """Seconds until the current call's deadline.

    Raises:
        TimeoutError: it has passed.
    """
    left: float = _deadline.at - time.monotonic()
    if left <= 0:
        raise TimeoutError("the call's deadline has passed")
    return left


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
        """Read what has arrived, waiting for it no longer than the deadline allows."""
        self._sock.settimeout(min(_time_left(), FIRST_BYTE_SECONDS))
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


class _DeadlineConnection(HTTPConnection):
    """Connects and sends within the call's deadline, and is not used again after a rest."""

    response_class = _DeadlineResponse
    _used_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether the pool may use it again. A NAT may have forgotten a connection that was idle for
        some seconds; a write sent into it would be lost with its caller waiting."""
        return super().is_connected and time.monotonic() - self._used_at < IDLE_SECONDS

    def _new_conn(self) -> socket.socket:
        # As urllib3's own, with its errors, but for the deadline.
        try:
            deadline = time.monotonic() + min(CONNECT_SECONDS, _time_left())
            connection = sockets.connect(self._dns_host, self.port, deadline, self.socket_options or ())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "connecting took too long") from error
        except OSError as error:
            raise NewConnectionError(self, "no address accepts connections") from error
        # For the whole TLS handshake.
        connection.settimeout(max(0.001, min(CONNECT_SECONDS, _deadline.at - time.monotonic())))
        return connection

    def send(self, data: Any) -> None:
        """Send within the time left. A socket's timeout bounds all of it, not each piece."""
        if self.sock is None:
            self.connect()
        self.sock.settimeout(min(FIRST_BYTE_SECONDS, _time_left()))
        super().send(data)
        self._used_at = time.monotonic()

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._used_at = time.monotonic()
        return response


class _DeadlineHTTPSConnection(_DeadlineConnection, HTTPSConnection):
    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError as error:  # in the handshake: nothing has been sent
            raise ConnectTimeoutError(self, "the TLS handshake took too long") from error


class _DeadlineAdapter(HTTPAdapter):
    """Gives every pool the connections above."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _DeadlineHTTPSConnection if pool.scheme == "https" else _DeadlineConnection
        return pool
