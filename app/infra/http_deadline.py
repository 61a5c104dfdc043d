"""HTTP connections that observe one deadline for a whole call, however slowly data arrives.

The timeout of a socket starts again with every byte, so by itself it does not limit a call.
"""

import http.client
import io
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from app.infra import sockets
from app.infra.staleness import IDLE_SECONDS

CONNECT_SECONDS = 3.0  # for name lookup and all addresses, and as long again for the TLS handshake
FIRST_BYTE_SECONDS = 5.0

_DISCARD = struct.pack("ii", 1, 0)  # the value of SO_LINGER: discard what was not sent

# The deadline of this thread's call. Pools choose connections by themselves, so there is no other way to pass
# it on.
_deadline = threading.local()


def set_deadline(timeout: float) -> None:
    """Limit this thread's next call to `timeout` seconds."""
    _deadline.at = time.monotonic() + timeout


def socket_timeouts(timeout: float) -> Timeout:
    """Return how long a call may take to connect, and to wait for the first byte."""
    return Timeout(connect=min(CONNECT_SECONDS, timeout), read=min(FIRST_BYTE_SECONDS, timeout))


def _time_left() -> float:
    """Return the seconds until this thread's deadline.

    Raises:
        TimeoutError: It has passed.
    """
    left: float = _deadline.at - time.monotonic()
    if left <= 0:
        raise TimeoutError("the call's deadline has passed")
    return left


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what has arrived. Wait for it until the deadline."""
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
        """Read up to the body, and skip interim responses.

        http.client returns `103 Early Hints` as the response. The next call on this connection would then
        get the real one, which may be about another person.
        """
        super().begin()
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _DeadlineConnection(HTTPConnection):
    """Connects and sends until the deadline, and is not reused after it has been idle."""

    response_class = _DeadlineResponse
    _used_at = 0.0
    _unsent: list[bytes] | None = None  # the parts of a request that is being put together
    _awaits_response = False

    @property
    def is_connected(self) -> bool:
        """Whether the pool may reuse it.

        A NAT may have dropped a connection that was idle for some seconds. A write on it would be lost, and
        its caller would wait for the timeout.
        """
        return super().is_connected and time.monotonic() - self._used_at < IDLE_SECONDS

    def _new_conn(self) -> socket.socket:
        # Like urllib3's own, with the same errors, but until the deadline.
        try:
            deadline = time.monotonic() + min(CONNECT_SECONDS, _time_left())
            connection = sockets.connect(self._dns_host, self.port, deadline, self.socket_options or ())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "connecting took too long") from error
        except OSError as error:
            raise NewConnectionError(self, "no address accepts connections") from error
        # for the whole TLS handshake
        connection.settimeout(max(0.001, min(CONNECT_SECONDS, _deadline.at - time.monotonic())))
        return connection

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request at once. http.client would send the body separately, in another packet."""
        self._unsent = []
        try:
            super().request(*args, **kwargs)
        finally:
            parts, self._unsent = self._unsent, None
        self.send(b"".join(parts))

    def send(self, data: Any) -> None:
        """Send until the deadline. For `sendall`, the timeout of a socket is a limit for all data."""
        if self._unsent is not None:
            self._unsent.append(data)
            return
        if self.sock is None:
            self.connect()
        self.sock.settimeout(min(FIRST_BYTE_SECONDS, _time_left()))
        self._awaits_response = True
        super().send(data)
        self._used_at = time.monotonic()

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._used_at = time.monotonic()
        self._awaits_response = False
        return response

    def close(self) -> None:
        """Close the connection. A request without a response must not arrive later.

        The system would go on sending what was not acknowledged. If the network was down, the request would
        arrive after its caller has given up: a refresh token would be used after its lease.
        """
        if self._awaits_response and self.sock is not None:
            with suppress(OSError):  # then it is closed already
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        self._awaits_response = False
        super().close()


class _DeadlineHTTPSConnection(_DeadlineConnection, HTTPSConnection):
    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError as error:  # in the handshake: nothing has been sent
            raise ConnectTimeoutError(self, "the TLS handshake took too long") from error


class DeadlineAdapter(HTTPAdapter):
    """Makes pools use connections that observe the deadline."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool for a request."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _DeadlineHTTPSConnection if pool.scheme == "https" else _DeadlineConnection
        return pool
