"""Reports to `flask doctor` how its request arrived, through all proxies."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from itsdangerous import BadSignature, TimestampSigner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADER = "X-Backline-Doctor"
_KEY = f"HTTP_{HEADER.upper().replace('-', '_')}"
_MAX_AGE_SECONDS = 60


@dataclass(frozen=True)
class Arrival:
    """A request as the app sees it, and the entries of X-Forwarded-For."""

    scheme: str
    host: str
    client: str
    forwarded_for: list[str]


class ArrivalReport:
    """WSGI middleware that adds the report to responses, if the request proves that it knows SECRET_KEY.

    The report describes nothing but that request. But a proxy's address is not for the public.
    """

    def __init__(self, app: "WSGIApplication", secret_key: str) -> None:
        self._app = app
        self._signer = _signer(secret_key)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Pass a request on."""
        if _KEY not in environ or not self._is_from_doctor(environ[_KEY]):
            return self._app(environ, start_response)
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        arrival = Arrival(
            environ["wsgi.url_scheme"],
            environ.get("HTTP_HOST", ""),
            environ.get("REMOTE_ADDR", ""),
            [entry.strip() for entry in forwarded_for.split(",") if entry.strip()],
        )

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, (HEADER, json.dumps(asdict(arrival)))], *error)

        return self._app(environ, start)

    @staticmethod
    def request_token(secret_key: str) -> str:
        """Return the header that asks for a report, for a minute."""
        return _signer(secret_key, _BackdatedSigner).sign("report").decode()

    @staticmethod
    def parse(headers: Mapping[str, str]) -> Arrival | None:
        """Return the report in a response's headers (names in lower case), or None if there is none."""
        try:
            return Arrival(**json.loads(headers[HEADER.lower()]))
        except (KeyError, ValueError, TypeError):
            return None

    def _is_from_doctor(self, token: str) -> bool:
        try:
            return self._signer.unsign(token, _MAX_AGE_SECONDS) == b"report"
        except BadSignature:
            return False


class _BackdatedSigner(TimestampSigner):
    """Signs half a minute back: the service's clock may be behind, and rejects times that are ahead."""

    def get_timestamp(self) -> int:
        return super().get_timestamp() - _MAX_AGE_SECONDS // 2


def _signer(secret_key: str, kind: type[TimestampSigner] = TimestampSigner) -> TimestampSigner:
    return kind(secret_key, salt=HEADER, key_derivation="hmac", digest_method=hashlib.sha256)
