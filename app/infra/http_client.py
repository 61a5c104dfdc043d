"""The HTTP client for all calls to Spotify.

It follows no redirects (a 307 would send a refresh token to another host), and uses no proxies or `.netrc`
from the environment and no cookies. Calls have one deadline for everything and a limit on response size.
"""

import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from werkzeug.http import parse_date

from app.infra import http_deadline
from app.infra.clock import utc_now

TOTAL_SECONDS = 10.0
MAX_RESPONSE_BYTES = 1024 * 1024
_DEFAULT_HEADERS = dict(requests.utils.default_headers())
# Arguments of `urlopen`: no retries, no redirects, and the response's body is not read or decompressed.
_WITHOUT_CONVENIENCE: Any = {
    "retries": False,
    "redirect": False,
    "assert_same_host": False,
    "preload_content": False,
    "decode_content": False,
}


class TransportError(Exception):
    """No usable response arrived: not connected, cut off, too slow, too large, or a bad certificate.

    Attributes:
        not_sent: Whether nothing of the request can have reached the server.
        received: The part of the response body that arrived.
    """

    def __init__(self, reason: str, *, not_sent: bool = False, received: bytes = b"") -> None:
        super().__init__(reason)
        self.not_sent = not_sent
        self.received = received


@dataclass(frozen=True)
class HttpResponse:
    """A response: the status, the headers (names in lower case), and the raw body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty one if it is anything else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def retry_after(self) -> int | None:
        """How many seconds to wait before another call, if the response has a valid Retry-After."""
        return retry_after(self.headers.get("retry-after", ""), since=self.headers.get("date", ""))


def retry_after(value: str, *, since: str = "") -> int | None:
    """Parse a Retry-After header: whole seconds, rounded up, or None if it is invalid.

    Args:
        value: The header: seconds (some servers send fractions) or a date. A date in the past means 0.
        since: The response's Date header. Dates are relative to it, so that our clock does not matter.

    Source: RFC 9110 section 10.2.3.
    """
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{0,9})?", value):
        return math.ceil(float(value))
    until = parse_date(value) if value[:1].isalpha() else None
    if until is None:
        return None
    return max(0, math.ceil((until - (parse_date(since) or utc_now())).total_seconds()))


class HttpClient:
    """Sends requests and reads whole responses within a deadline. Safe to share between threads.

    `requests` prepares URLs and pools, with its rules for TLS. Requests go to the pools directly, because
    `requests.Session` takes more CPU time than the call itself.

    Args:
        ca_bundle: The file of certificates to trust; the usual ones if None.
        traceparent: Returns the header that connects a request with a trace, if there is one.
    """

    def __init__(
        self, ca_bundle: str | None = None, *, traceparent: Callable[[], str | None] = lambda: None
    ) -> None:
        self._traceparent = traceparent
        self._adapter = http_deadline.DeadlineAdapter(pool_connections=4, pool_maxsize=64, max_retries=0)
        self._verify = ca_bundle or True
        self._pools: dict[tuple[str, str], HTTPConnectionPool] = {}

    def close(self) -> None:
        """Close the connections that are kept for later calls."""
        for pool in self._pools.values():
            pool.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        timeout: float | None = None,
        max_bytes: int = MAX_RESPONSE_BYTES,
        data: Mapping[str, str] | bytes | None = None,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """Send one request.

        Args:
            method: The HTTP method.
            url: The URL.
            timeout: Seconds for the whole call; `TOTAL_SECONDS` if None.
            max_bytes: The largest response body to accept, after decompression.
            data: The body, or the fields of a form.
            auth: The user name and password of HTTP Basic authentication.
            headers: More headers.

        Raises:
            TransportError: No complete response arrived. The request may still have taken effect.
        """
        timeout = TOTAL_SECONDS if timeout is None else timeout
        http_deadline.set_deadline(timeout)
        try:
            prepared = requests.PreparedRequest()
            prepared.prepare_url(url, None)
            response = self._pool_for(prepared).urlopen(
                method,
                prepared.path_url,
                body=urlencode(data) if isinstance(data, Mapping) else data,
                headers=_all_headers(method, data, auth, headers or {}, self._traceparent()),
                timeout=http_deadline.socket_timeouts(timeout),
                **_WITHOUT_CONVENIENCE,
            )
            body = _read_and_close(response, max_bytes)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            # ValueError: invalid framing or headers, which the libraries do not wrap.
            raise TransportError(type(error).__name__, not_sent=_was_not_sent(error)) from error
        received = {name.lower(): value for name, value in response.headers.itermerged()}
        return HttpResponse(response.status, received, body)

    def _pool_for(self, prepared: requests.PreparedRequest) -> HTTPConnectionPool:
        parts = urlsplit(str(prepared.url))
        key = (parts.scheme, parts.netloc)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._adapter.get_connection_with_tls_context(prepared, self._verify)
            self._adapter.cert_verify(pool, str(prepared.url), self._verify, None)  # type: ignore[no-untyped-call]
            self._pools[key] = pool
        return pool


def _all_headers(
    method: str,
    data: Mapping[str, str] | bytes | None,
    auth: tuple[str, str] | None,
    headers: Mapping[str, str],
    traceparent: str | None,
) -> dict[str, str]:
    found = {**_DEFAULT_HEADERS, **headers}
    if traceparent is not None:
        found["traceparent"] = traceparent
    if isinstance(data, Mapping):
        found["Content-Type"] = "application/x-www-form-urlencoded"
    if data is None and method not in ("GET", "HEAD"):
        found["Content-Length"] = "0"
    if auth is not None:
        found["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
    return found


def _was_not_sent(error: Exception) -> bool:
    """Return whether a call failed before there was a connection.

    A kept connection that broke may have delivered the request. A TLS error may occur while the response is
    read.
    """
    return isinstance(error, NewConnectionError | ConnectTimeoutError)


def _read_and_close(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Read the body, and return the connection to its pool.

    Raises:
        TransportError: The body is incomplete, too large, or invalid.
    """
    try:
        return _read_body(response, max_bytes)
    finally:
        # If there is more to read, this closes the connection: it must not become the next response.
        response.close()
        response.release_conn()


def _read_body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Read and decompress the whole body.

    Raises:
        TransportError: The body is incomplete, too large, or invalid. Carries the part that arrived.
    """
    received = bytearray()
    try:
        # Unlike `read`, `read1` keeps what has arrived when the rest does not come.
        while len(received) <= max_bytes and (data := response.read1(16_384, decode_content=False)):
            received += data
        body = _decompress(bytes(received), response, max_bytes)
    except (HTTPError, OSError, ValueError) as error:
        part = bytes(received)
        with suppress(HTTPError):
            part = _decompress(part, response, max_bytes)
        raise TransportError(type(error).__name__, received=part) from error
    if max(len(received), len(body)) > max_bytes:
        raise TransportError("TooBig", received=body)
    return body


def _decompress(body: bytes, response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Undo the response's Content-Encoding. Returns at most `max_bytes` + 1 bytes."""
    encoding = {"Content-Encoding": response.headers.get("Content-Encoding", "")}
    if not encoding["Content-Encoding"]:
        return body[: max_bytes + 1]
    return HTTPResponse(io.BytesIO(body), headers=encoding, preload_content=False).read(max_bytes + 1)
