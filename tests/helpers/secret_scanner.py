"""Searches everything that the product sends, logs, or stores during a test for secrets.

This covers logs at LOG_LEVEL=DEBUG, responses, commands sent to Redis, all columns of the database, and the
output of programs that `tests/helpers/servers.py` or `subprocess.run` starts. For other output, call
`secret_scanner.record(output, "where")`. `tests/conftest.py` scans at the end of each test.

These secrets are allowed: the session id in its Set-Cookie, the access token in the response of
`GET /api/spotify/token`, a personal access token, a JWT, or a device code in the response that issues it, and
the tokens in emails that development prints. The `state` of an authorization may appear only in the URL of
the consent page in a response. The examples in the OpenAPI document and Swagger UI's files are skipped.
"""

import base64
import hashlib
import json
import logging
import re
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, quote_plus, urlsplit

import redis
import requests
import sqlalchemy as sa
import werkzeug.test

from app.infra import log_setup
from app.settings.types import decode_key
from app.web import docs
from app.web.request_log import RequestFields

# The format of the sandbox's codes and tokens (sandbox/grants.py).
TOKEN = re.compile(r"([AB])Q[\w-]{60,}", re.ASCII)
# The format of our own tokens (app/infra/bearer_token.py), even if one is mistyped.
PERSONAL_ACCESS_TOKEN = re.compile(r"bl_pat_[\w-]{20,}", re.ASCII)
JWT = re.compile(r"eyJ[\w-]{20,}\.eyJ[\w-]+\.[\w-]{40,}", re.ASCII)
TOKEN_KINDS = {"A": "a code or refresh token", "B": "an access token"}

# Session ids, states and verifiers are 256 random bits in base64url.
ID_CHARS = 43
RUN = re.compile(r"[\w-]{43,}", re.ASCII)
MIXED = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)")
LONGEST_VERIFIER = 128  # RFC 7636 section 4.1

SESSION_COOKIE = re.compile(
    r"^((?:__Host-Http-session|__Host-session|backline_session)=)([\w-]{43})(?=;|$)", re.ASCII
)
PRINTED_MAIL = re.compile(r"--- email to .*?--- end ---", re.DOTALL)
PUBLIC_KEY = re.compile(r'"(?:x|kid)":"[\w-]{43}"', re.ASCII)
EXAMPLE = re.compile(r"\"example\":\s*\"[^\"]*\"")
CONSENT_URL = re.compile(r"https?://[^\s\"'<>\\]*\bcode_challenge=[^\s\"'<>\\]*")
CHALLENGE = re.compile(r"\bcode_challenge=([\w-]+)", re.ASCII)
STATE = re.compile(r"\bstate=([\w-]+)", re.ASCII)

# The responses that issue our own tokens, and where these are in them.
ISSUING_ROUTES = ("POST /api/user/tokens", "POST /api/oauth/token")
DEVICE_CODE = re.compile(r'("device_code":\s*")([\w-]{43})(?=")', re.ASCII)
ISSUED = re.compile(rf'"(?:access_)?token":\s*"{PERSONAL_ACCESS_TOKEN.pattern}"', re.ASCII)

CONTEXT_CHARS = 60  # shown on either side of a secret
Texts = Iterable[tuple[str, str]]
Span = tuple[int, int, str]


@dataclass(frozen=True)
class Leak:
    """A secret that was found. The excerpt shows its context, but not the secret."""

    kind: str
    where: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.kind} in {self.where}: {self.excerpt}"


class SecretScanner:
    """Collects texts and secrets, and searches when all secrets are known."""

    def __init__(self) -> None:
        self.sources: list[Callable[[], Texts]] = []
        """Further texts, which are read before a scan."""
        self._texts: list[tuple[str, str]] = []
        self._phrases: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._challenges: set[str] = set()

    # --- secrets --------------------------------------------------------------------------

    def learn(self, kind: str, *values: str) -> None:
        """Search for these values from now on, as they are and URL-encoded."""
        for value in values:
            if len(value) < 12:
                continue  # it would match by chance. No secret in the tests is this short
            for form in (value, quote(value, safe=""), quote_plus(value)):
                self._phrases[form] = kind

    def learn_settings(self, settings: Mapping[str, str]) -> None:
        """Search for the secrets in an app's settings, in every encoding that code uses."""
        self.learn("the secret key", settings.get("SECRET_KEY", ""))
        secret = settings.get("SPOTIFY_CLIENT_SECRET", "")
        pair = f"{settings.get('SPOTIFY_CLIENT_ID', '')}:{secret}"
        if secret:
            self.learn("the client secret", secret, base64.b64encode(pair.encode()).decode())
        for key in settings.get("TOKEN_ENCRYPTION_KEYS", "").split(","):
            self._learn_key("an encryption key", key)
        for key in settings.get("JWT_SIGNING_KEYS", "").split(","):
            self._learn_key("a signing key", key)

    def _learn_key(self, kind: str, key: str) -> None:
        self.learn(kind, key)
        with suppress(ValueError):
            raw = decode_key(key)
            shown = repr(raw)[2:-1]  # as in a traceback, and the same in JSON
            self.learn(kind, raw.hex(), shown, json.dumps(shown)[1:-1])

    # --- texts -----------------------------------------------------------------------

    def record(self, text: str | bytes, where: str) -> None:
        """Search this text in the next scan."""
        self._texts.append((where, PRINTED_MAIL.sub("(a mail)", _text(text))))

    def record_response(
        self, request: str, status: str, headers: Iterable[tuple[str, str]], body: bytes | None
    ) -> None:
        """Record one of our responses, to a request such as `GET /path`, and learn the ids that it issues."""
        lines = [status]
        for name, value in headers:
            if name.lower() == "set-cookie":
                value = SESSION_COOKIE.sub(self._hide_id, value)  # noqa: PLW2901 - the id is allowed there
            lines.append(f"{name}: {value}")
        shown = _without_allowed(request, body or b"")
        if request == "POST /api/oauth/device_authorization":
            shown = DEVICE_CODE.sub(self._hide_device_code, shown)
        text = "\n".join([*lines, "", shown])
        self.record(CONSENT_URL.sub(self._hide_authorization, text), f"the response to {request}")

    def _hide_id(self, cookie: re.Match[str]) -> str:
        self._ids[cookie[2]] = "a session id"
        return f"{cookie[1]}(id)"

    def _hide_device_code(self, member: re.Match[str]) -> str:
        self._ids[member[2]] = "a device code"
        return f"{member[1]}(device code)"

    def _hide_authorization(self, url: re.Match[str]) -> str:
        self._challenges.update(CHALLENGE.findall(url[0]))
        self._ids.update(dict.fromkeys(STATE.findall(url[0]), "an authorization's state"))
        return CHALLENGE.sub("code_challenge=(challenge)", STATE.sub("state=(state)", url[0]))

    # --- leaks ---------------------------------------------------------------------------

    @property
    def origins(self) -> set[str]:
        """The origins of the texts recorded since the last scan."""
        self._read_sources()
        return {where for where, _ in self._texts}

    def scan(self) -> list[Leak]:
        """Search everything recorded since the last scan. Returns one leak for each kind and origin."""
        self._read_sources()
        texts, self._texts = self._texts, []
        clean: set[str] = set()
        leaks: dict[tuple[str, str], Leak] = {}
        for where, text in texts:
            if spans := self._spans(text, clean):
                for kind, excerpt in _excerpts(text, spans):
                    leaks.setdefault((kind, where), Leak(kind, where, excerpt))
        return list(leaks.values())

    def _read_sources(self) -> None:
        for source in self.sources:
            for where, text in source():
                self.record(text, where)

    def _spans(self, text: str, clean: set[str]) -> list[Span]:
        """Return the spans and kinds of secrets. Adds long words without secrets to `clean`."""
        found = [(match.start(), match.end(), TOKEN_KINDS[match[1]]) for match in TOKEN.finditer(text)]
        found += [
            (match.start(), match.end(), "a personal access token")
            for match in PERSONAL_ACCESS_TOKEN.finditer(text)
        ]
        found += [(match.start(), match.end(), "a JWT") for match in JWT.finditer(text)]
        for phrase, kind in self._phrases.items():
            if phrase in text:
                found += [
                    (match.start(), match.end(), kind) for match in re.finditer(re.escape(phrase), text)
                ]
        for run in RUN.finditer(text):
            if run[0] in clean:
                continue
            if ids := self._ids_in(run[0], in_a_hash=text[run.start() - 1 : run.start()] == "$"):
                found += [(run.start() + start, run.start() + end, kind) for start, end, kind in ids]
            else:
                clean.add(run[0])
        return found

    def _ids_in(self, word: str, *, in_a_hash: bool) -> list[Span]:
        if word == word.lower():
            return []  # a hash in hexadecimal, or a name in the code
        ends = range(ID_CHARS, len(word) + 1)
        found = [
            (end - ID_CHARS, end, kind)
            for end in ends
            if (kind := self._kind_of(word[end - ID_CHARS : end])) is not None
        ]
        if not found and len(word) <= LONGEST_VERIFIER and (kind := self._kind_of(word)) is not None:
            found = [(0, len(word), kind)]
        if not found and len(word) == ID_CHARS and MIXED.match(word) and not in_a_hash:
            # Issued in a response that was not recorded, such as one to curl or Chromium.
            found = [(0, len(word), "an unknown id of 256 bits")]
        return found

    def _kind_of(self, word: str) -> str | None:
        if word in self._ids:
            return self._ids[word]
        return "a PKCE verifier" if self._challenges and _challenge(word) in self._challenges else None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _without_allowed(request: str, body: bytes) -> str:
    """Return the body without what it may contain, and without static files."""
    if request.startswith("GET /api/docs/") and _is_asset(Path(request).name, body):
        return ""  # base64 matches anything
    text = _text(body)
    if request == "GET /api/spotify/token":
        return _without_access_token(text)
    if request in ISSUING_ROUTES:
        return ISSUED.sub("", text)
    if request == "POST /api/session/jwt":
        return JWT.sub("(JWT)", text)
    if request == "GET /.well-known/jwks.json":
        return PUBLIC_KEY.sub("", text)  # it looks like an id of 256 bits
    if request == "GET /api/openapi.json":
        return EXAMPLE.sub("", text)  # tests use the documented password
    return text


def _is_asset(name: str, body: bytes) -> bool:
    file = docs._ASSETS / name
    return file.is_file() and file.read_bytes() == body


def _without_access_token(body: str) -> str:
    """Remove `access_token`, unless it contains something else, such as a refresh token."""
    try:
        members = json.loads(body)
    except ValueError:
        return body
    if isinstance(members, dict) and _kind_of_token(members.get("access_token")) == TOKEN_KINDS["B"]:
        del members["access_token"]
    return json.dumps(members)


def _kind_of_token(value: object) -> str | None:
    match = TOKEN.fullmatch(value) if isinstance(value, str) else None
    return TOKEN_KINDS[match[1]] if match else None


def _excerpts(text: str, spans: list[Span]) -> Iterator[tuple[str, str]]:
    """Yield the context of each secret, with all secrets masked."""
    masked, at, marks = "", 0, []
    for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= at:
            masked += text[at:start]
            marks.append((kind, len(masked)))
            masked += f"[{kind}]"
        at = max(at, end)  # if two overlap, the first and longest counts
    masked += text[at:]
    for kind, mark in marks:
        excerpt = masked[max(0, mark - CONTEXT_CHARS) : mark + len(kind) + 2 + CONTEXT_CHARS]
        yield kind, " ".join(excerpt.split())


# --- sources of texts -----------------------------------------------------------------------


class RedisCommands:
    """Every command that Redis receives, and so all keys and values, including deleted ones.

    Attributes:
        lines: What MONITOR has shown, until someone takes it.
    """

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self._client = redis.Redis.from_url(url, socket_timeout=60)
        self._monitor: Any = self._client.monitor()  # type: ignore[no-untyped-call]
        self._monitor.__enter__()

    def __call__(self) -> Texts:
        mark = secrets.token_hex(16)
        self._client.echo(mark)
        lines: list[str] = []
        # `Monitor.next_command` would also parse each command.
        while mark not in (line := _text(self._monitor.connection.read_response())):
            lines.append(line)
        self.lines += lines
        yield "Redis", "\n".join(lines)

    def close(self) -> None:
        self._monitor.__exit__()
        self._client.close()


class Columns:
    """Every value in every column of a database."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        self._metadata = sa.MetaData()
        self._metadata.reflect(self._engine)

    def __call__(self) -> Texts:
        with self._engine.connect() as connection:
            for table in self._metadata.sorted_tables:
                rows = connection.execute(table.select()).all()
                for column, values in zip(table.columns, zip(*rows, strict=True), strict=False):
                    yield f"the column {column}", "\n".join(map(_text, values))

    def close(self) -> None:
        self._engine.dispose()


SCANNER = SecretScanner()
"""The scanner of all tests."""


def record(text: str | bytes, where: str) -> None:
    """Search this text in the next scan, such as the output of a process that a test started."""
    SCANNER.record(text, where)


@contextmanager
def recording() -> Iterator[None]:
    """Record what this process logs, the responses it gets from us, and what our programs print."""
    with _recording_logs(), _recording_test_clients(), _recording_requests(), _recording_output():
        yield


@contextmanager
def _recording_logs() -> Iterator[None]:
    """Record everything that LOG_LEVEL=DEBUG would log, formatted as in production.

    Levels and handlers do not change, so tests and pytest's reports are not affected.
    """
    formatter, request_fields = log_setup.JsonFormatter(), RequestFields()
    levels = _logger_levels()
    enabled, handle = logging.Logger.isEnabledFor, logging.Logger.callHandlers

    def is_enabled_for(logger: logging.Logger, level: int) -> bool:
        return enabled(logger, level) or _would_log(logger, level, levels)

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        if _would_log(logger, record.levelno, levels):
            request_fields.filter(record)
            SCANNER.record(formatter.format(record), f"the log of {record.name}")
        if enabled(logger, record.levelno):
            handle(logger, record)

    with (
        patch.object(logging.Logger, "isEnabledFor", is_enabled_for),
        patch.object(logging.Logger, "callHandlers", call_handlers),
    ):
        yield


def _logger_levels() -> dict[str, int]:
    """Return the loggers that have their own level, and these levels."""
    with patch("logging.config.dictConfig") as configured:
        log_setup.configure(level="DEBUG", style="json")
    names = logging.getLevelNamesMapping()
    return {
        name: names[settings["level"]] for name, settings in configured.call_args.args[0]["loggers"].items()
    }


def _would_log(logger: logging.Logger, level: int, levels: Mapping[str, int]) -> bool:
    above: logging.Logger | None = logger
    while above is not None and above.parent is not None:
        if own := levels.get(above.name) or above.level:
            return level >= own
        above = above.parent
    return level >= logging.DEBUG


def _recording_test_clients() -> AbstractContextManager[Any]:
    original = werkzeug.test.Client.open

    def recorded_open(client: werkzeug.test.Client, *args: Any, **kwargs: Any) -> werkzeug.test.TestResponse:
        response = original(client, *args, **kwargs)
        request = f"{response.request.method} {response.request.path}"
        SCANNER.record_response(request, response.status, response.headers.items(), response.get_data())
        return response

    return patch.object(werkzeug.test.Client, "open", recorded_open)


def _recording_requests() -> AbstractContextManager[Any]:
    """Record responses that `requests` gets from our servers. The sandbox's contain tokens."""
    original = requests.Session.send

    def send(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> Any:
        response = original(session, request, **options)
        if "X-Request-ID" in response.headers:  # only ours have it (app/web/security_headers.py)
            SCANNER.record_response(
                f"{response.request.method} {urlsplit(response.url).path}",
                f"{response.status_code} {response.reason}",
                response.raw.headers.iteritems(),  # keeps each Set-Cookie separate
                None if options.get("stream") else response.content,
            )
        return response

    return patch.object(requests.Session, "send", send)


def _recording_output() -> AbstractContextManager[Any]:
    """Record the output of our programs that `subprocess.run` collects."""
    original = subprocess.Popen.communicate

    def communicate(process: subprocess.Popen[Any], *args: Any, **options: Any) -> tuple[Any, Any]:
        output = original(process, *args, **options)
        if isinstance(process.args, list) and "wsgi:app" in process.args:
            # Further arguments may be passwords.
            program = " ".join(process.args[: process.args.index("wsgi:app") + 2])
            for text in filter(None, output):
                SCANNER.record(text, f"the output of {program}")
        return output

    return patch.object(subprocess.Popen, "communicate", communicate)
