"""The types of settings, as pydantic validators.

A message completes a sentence that begins with the name of the setting. It never quotes a secret.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, ValidationError, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler
from sqlalchemy.exc import ArgumentError

from app.settings.database_url import MYSQL, HostListError, is_usable, parse_database_url
from app.settings.redis_urls import is_redis_url
from app.settings.urls import APP_SCHEMES, is_exact_origin, is_host, is_loopback

NEW_TEXT_KEY = 'Make one: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
NEW_BYTES_KEY = 'Make one: python3 -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())"'

# Everything the Vue example shows, and no more: profile, playback, playlists, top tracks, and the
# Web Playback SDK (`streaming`, which historically also checks the two profile scopes).
DEFAULT_SCOPES = (
    "user-read-private user-read-email streaming "
    "user-read-playback-state user-modify-playback-state user-read-currently-playing "
    "playlist-read-private user-top-read user-read-recently-played"
)
# Asked for when the Vue example needs it: to save a track.
DEFAULT_OPTIONAL_SCOPES = "user-library-modify"

# Headers that Sentry and OpenTelemetry add to a page's requests, so that traces include the backend.
TRACE_HEADERS = ("sentry-trace", "baggage", "traceparent")
# Headers that browsers and proxies set, and one that this API does not accept.
_RESERVED_HEADERS = r"authorization|cookie|host|origin|(proxy|sec|x-forwarded)-.*|forwarded|x-real-ip"

# A name, or all names below a domain of at least two labels. Werkzeug cannot compare IPv6 addresses.
_HOST = r"([a-z0-9-]+(\.[a-z0-9-]+)*|\.[a-z0-9-]+(\.[a-z0-9-]+)+)(:\d{1,5})?"


@dataclass(frozen=True)
class Required:
    """Marks a setting that has no default in production, or none at all."""

    hint: str = "See .env.example."
    in_development: bool = False


def _check(is_valid: Callable[[str], object], problem: str) -> AfterValidator:
    """Require a condition of a text."""

    def validate(text: str) -> str:
        if not is_valid(text):
            raise ValueError(problem)
        return text

    return AfterValidator(validate)


def _check_each(is_valid: Callable[[str], object], problem: str) -> AfterValidator:
    """Require that each word is valid. The error has one line for each that is not."""

    def validate(words: tuple[str, ...]) -> tuple[str, ...]:
        # A password may contain a comma, so any of the words may be a part of it.
        hide = any("@" in word for word in words)
        lines = [
            problem.format(word=f"entry {number} (not shown: it may have a password)" if hide else repr(word))
            for number, word in enumerate(words, start=1)
            if not is_valid(word)
        ]
        if lines:
            raise ValueError("\n".join(lines))
        return words

    return AfterValidator(validate)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def whole_number(least: int, most: int, *, problem: str = "must be a whole number") -> BeforeValidator:
    """Accept digits only, not `1_000` or ` 5`, which Python would accept."""

    def validate(text: str) -> int:
        is_number = re.fullmatch(r"0*[0-9]{1,10}", text) is not None
        if not is_number or not least <= int(text) <= most:
            raise ValueError(f"{problem} from {least} to {most}.")
        return int(text)

    return BeforeValidator(validate)


def _bool(text: str, parse: ValidatorFunctionWrapHandler) -> object:
    try:
        return parse(text)
    except ValidationError:
        raise ValueError("must be true or false.") from None


def _budget(text: str, parse: ValidatorFunctionWrapHandler) -> object:
    return None if text.lower() == "auto" else parse(text)


def decode_key(word: str) -> bytes:
    """Decode a key of 32 bytes in base64 (either alphabet, padded or not) or in hexadecimal.

    Raises:
        ValueError: It is neither.
    """
    if re.fullmatch(r"[0-9a-fA-F]{64}", word):
        return bytes.fromhex(word)
    unpadded = word.replace("-", "+").replace("_", "/").rstrip("=")
    key = base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    if len(key) != 32:
        raise ValueError("not 32 bytes")
    return key


def _keys(text: str) -> tuple[bytes, ...]:
    try:
        return tuple(map(decode_key, _words(text)))
    except ValueError:
        problem = "must be one or more keys of 32 bytes in base64, newest first, comma separated."
        raise ValueError(f"{problem} {NEW_BYTES_KEY}") from None


def _database_url(text: str) -> str:
    """Require a URL that the driver can use."""
    try:
        text.encode()  # bytes that are not UTF-8 arrive as lone surrogates
        is_valid = is_usable(parse_database_url(text).url)
    except HostListError:
        raise
    except (ArgumentError, ValueError):
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"must look like {MYSQL}://user:password@host/database?charset=utf8mb4 (or host1:3306,host2:3306 "
            "in order of preference) or sqlite:////absolute/path. Its parameters are those of mysqlclient, "
            "and of SQLAlchemy for TLS (ssl_ca)."
        )
    return text


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult | None:
    """Split a URL. Returns None unless it has one of the schemes, a host, and a valid port."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in schemes and is_host(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, or a port that is not a number
        return None
    return parts if valid else None


def is_http_url(text: str) -> bool:
    """Return whether a text is an http(s) URL without credentials and a fragment."""
    parts = _split(text, ("http", "https"))
    printable = re.fullmatch(r"[!-[\]-~]+", text) is not None
    return parts is not None and printable and "@" not in parts.netloc and "#" not in text


def _is_mail_url(text: str) -> bool:
    parts = _split(text, ("smtp", "smtps"))
    return parts is not None and not (parts.path.strip("/") or parts.query or parts.fragment)


def _is_secure_or_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname)


def _is_secure_or_spotify_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1")


Budget = Annotated[
    int | None,
    whole_number(1, 1_000_000, problem="must be auto or a whole number"),
    WrapValidator(_budget),
]
Bool = Annotated[bool, WrapValidator(_bool)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Scopes = Annotated[tuple[str, ...], BeforeValidator(lambda text: tuple(text.replace(",", " ").split()))]
Keys = Annotated[tuple[bytes, ...], BeforeValidator(_keys)]

# Bytes that are not UTF-8 arrive as lone surrogates.
Text = Annotated[str, _check(lambda text: not re.search("[\ud800-\udfff]", text), "must be valid UTF-8.")]
# HTTP Basic authentication cannot carry a typographic quote, and would fail much later.
Credential = Annotated[
    str,
    _check(
        lambda text: bool(re.fullmatch(r"[!-~]*", text)), "has characters that no Spotify credential has."
    ),
]
HostNames = Annotated[
    Annotated[tuple[str, ...], BeforeValidator(lambda text: _words(text.lower()))],  # as browsers send them
    _check_each(
        lambda name: re.fullmatch(_HOST, name),
        "has {word}, which is not a host name such as api.example.com. Use names (or IPv4 addresses), "
        "without https:// and wildcards.",
    ),
]
HeaderNames = Annotated[
    Words,
    _check_each(
        lambda name: re.fullmatch(r"[A-Za-z0-9_.-]+", name),
        "has {word}, which is not the name of a header. List exact names.",
    ),
    _check_each(
        lambda name: not re.fullmatch(_RESERVED_HEADERS, name, re.IGNORECASE),
        "has {word}, which apps must not set. Remove it.",
    ),
    AfterValidator(lambda names: tuple(dict.fromkeys((*TRACE_HEADERS, *names)))),
]
# Exact: a wildcard with credentials would let any page read every response.
Origins = Annotated[
    Words,
    _check_each(
        is_exact_origin,
        "has {word}, which is not an exact origin such as https://app.example.com or capacitor://localhost "
        "(lower case, no default port, no path, no slash at the end, no wildcard; http, https, "
        f"{', '.join(APP_SCHEMES)}).",
    ),
]
InsecureParts = Annotated[
    frozenset[Literal["mail", "redis", "sqlite"]], BeforeValidator(lambda text: _words(text.lower()))
]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
RedisUrl = Annotated[
    str,
    _check(
        is_redis_url,
        "must look like redis://host:6379/0, rediss://..., unix:///path, "
        "redis+sentinel://host:26379,host:26379/service/0, or redis+cluster://host:6379,host:6379, with no "
        "parameters that redis-py does not know.",
    ),
]
HttpUrl = Annotated[
    str,
    _check(
        is_http_url,
        "must be an http(s) URL without a fragment, credentials, or spaces, and with xn-- for a domain "
        "that is not ASCII.",
    ),
]
# A Spotify host. Tokens and the client secret are sent there.
ServiceUrl = Annotated[
    HttpUrl,
    AfterValidator(lambda url: url.rstrip("/")),
    _check(_is_secure_or_loopback, "must be https (http is accepted on loopback only)."),
    _check(lambda url: not urlsplit(url).query, "must not have a query."),
]
# Source: https://developer.spotify.com/documentation/web-api/concepts/redirect_uri
RedirectUri = Annotated[
    HttpUrl,
    _check(
        lambda url: urlsplit(url).hostname != "localhost" and _is_secure_or_spotify_loopback(url),
        "must be https, or http with the loopback address 127.0.0.1 or [::1]: Spotify rejects anything "
        "else, localhost included.",
    ),
]
# smtp:// (STARTTLS if it is offered) or smtps:// (TLS from the start)
MailUrl = Annotated[
    str,
    _check(
        _is_mail_url,
        "must look like smtp://user:password@mail.example.com:587, with special characters of the password "
        "percent-encoded (# is %23).",
    ),
]
MailAddress = Annotated[
    str,
    _check(
        lambda text: re.fullmatch(r"""[^<>,;"]+""", text) and re.fullmatch(r"[!-~]+@[!-~]+", text),
        "must be a plain email address, such as no-reply@example.com.",
    ),
]
