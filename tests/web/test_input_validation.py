"""Invalid input gets a response that says what is wrong, and has no effect."""

# ruff: noqa: RUF001 - some of these tests are about ambiguous letters

import json
import string
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.auth.usernames import is_username
from app.infra.bearer_token import new_token
from app.infra.database import db
from app.infra.http_client import HttpResponse
from app.models import User, normalization
from app.web.api import MAX_NESTING, parse_json
from app.web.problems import MalformedRequest
from app.web.sessions.data import SessionData, unpack
from config import Config, ConfigError
from tests.conftest import SETTINGS
from tests.helpers.flows import PASSWORD, another_tab, register, slug
from tests.helpers.route_matrix import (
    METHODS,
    Route,
    Snapshot,
    ada,
    body_schema,
    documented,
    every_route,
    operation,
    send,
    valid_body,
    wait_for_background_work,
)
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.slow

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def routes_with_body(app: Flask) -> list[tuple[Route, dict[str, Any], dict[str, Any]]]:
    """Return the routes that accept a body, each with its schema and a valid body."""
    document = documented(app)
    return [
        (route, schema, valid_body(document, route) or {})
        for route in every_route(app)
        if (schema := body_schema(document, route)) is not None
    ]


# --- H1: bodies -----------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


UNREADABLE = {
    "unclosed object": b"{",
    "only whitespace": b" \n",
    "two values": b"{} {}",
    "a comment": b"{} // no",
    "a trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "-Infinity": b'{"a": [-Infinity]}',
    "1e400": b'{"a": 1e400}',
    "-1e400": b'{"a": -1e400}',
    "5,000 digits": b'{"a": ' + b"9" * 5_000 + b"}",
    "-5,000 digits": b'{"a": -' + b"9" * 5_000 + b"}",
    "unpaired surrogate": b'{"a": "\\ud800"}',
    "unpaired surrogate as a name": b'{"\\udc00": 1}',
    "surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "duplicate member": b'{"a": 1, "a": 1}',
    "duplicate member, escaped": b'{"a": 1, "\\u0061": 1}',
    "duplicate member, nested": b'{"a": [{"b": 1, "b": 2}]}',
    "bad UTF-8": b'{"a": "\xff"}',
    "an overlong slash": b'{"a": "\xc0\xaf"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "Latin-1": '{"a": "ä"}'.encode("latin-1"),
    "a byte order mark": '{"a": 1}'.encode("utf-8-sig"),
    "a bare NUL": b'{"a": "\x00"}',
    "NUL after it": b"{}\x00",
    "a bare newline": b'{"a": "\n"}',
    "33 levels": b'{"a": ' + nested(32) + b"}",
    "33 levels of objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "1,000 levels": nested(1_000),
    "60,000 levels": b"[" * 60_000,
    "30,000 levels, closed": nested(30_000),
    "30,000 objects": b'{"a":' * 10_000,
}
INVALID_BODIES = {
    "a list": b"[]",
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "a text": b'"text"',
    "an empty text": b'""',
    "32 levels": nested(32),
    "empty name": b'{"": 1}',
    "a name with NUL": b'{"\\u0000": 1}',
    "a prototype": b'{"__proto__": {}}',
    "4,000 digits": b'{"a": ' + b"9" * 4_000 + b"}",
}


@pytest.mark.requirement("H1")
@on_sqlite
def test_unusable_bodies_are_rejected_without_effect_on_every_route(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    before = Snapshot(app)
    routes = routes_with_body(app)
    assert routes
    for route, _, _ in routes:
        for wanted, bodies in ((400, UNREADABLE), (422, INVALID_BODIES)):
            for kind, body in bodies.items():
                response = send(client, route, data=body, content_type="application/json")
                assert response.status_code == wanted, (route, kind, response.text)
                assert slug(response) == {400: "malformed-request", 422: "validation-error"}[wanted]
        wait_for_background_work(app)
        assert Snapshot(app) == before, route


WRONG_VALUES = [
    *(None, True, 0, -1, 2**63, 10**400, 1.5, 1e308, [], {}, ["text"], {"$ne": ""}, "", "\0", "nul\0in it"),
    *("\x1b[31m", "\r\nX-Evil: 1", "a" * 60_000, "😀" * 500, "\u202e\u200b", "' OR 1=1 --", "{{7*7}} %s%n"),
]


@pytest.mark.requirement("H1")
@on_sqlite
def test_no_member_value_causes_a_server_error(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    before = Snapshot(app)
    for route, schema, good in routes_with_body(app):
        for name in schema["properties"]:
            for value in WRONG_VALUES:
                response = send(another_tab(client), route, json={**good, name: value})
                assert response.status_code < 500, (route, name, value)
                assert response.status_code < 300 or slug(response), (route, name, value)
                if response.status_code not in (400, 422):  # the test above shows that these have no effect
                    wait_for_background_work(app)
                    before.restore()
            missing = {member: there for member, there in good.items() if member != name}
            response = send(another_tab(client), route, json=missing)
            if name in schema.get("required", []):
                assert (response.status_code, list(response.json["errors"])) == (422, [name]), route
            wait_for_background_work(app)
            before.restore()


@pytest.mark.requirement("H1")
@on_sqlite
@pytest.mark.parametrize(
    ("member", "value"),
    [("username", "ad\0a"), ("username", "ada\0"), ("email", "a\0@example.com"), ("email", "a@b\0.de")],
)
def test_nul_in_a_username_or_email_address_is_rejected(client: FlaskClient, member: str, value: str) -> None:
    new = {"username": "ada", "email": "ada@example.com", "password": PASSWORD, member: value}

    response = client.post("/api/register", json=new)

    assert (response.status_code, list(response.json["errors"])) == (422, [member])


@pytest.mark.requirement("H1")
def test_nul_in_a_password_counts_like_any_character(client: FlaskClient, app: Flask) -> None:
    """Some hash functions written in C truncate a password there."""
    password = f"{PASSWORD}\0and what follows"
    new = {"username": "ada", "email": "ada@example.com", "password": password}
    assert client.post("/api/register", json=new).status_code == 201

    def signs_in(login: str, password: str) -> int:
        return client.post("/api/login", json={"login": login, "password": password}).status_code

    assert signs_in("ada", PASSWORD) == 401
    assert signs_in("ada", f"{PASSWORD}\0and other things") == 401
    assert signs_in("ada\0", password) == 401
    assert signs_in("ada", password) == 200


@pytest.mark.requirement("H1")
def test_token_with_a_nul_is_invalid(client: FlaskClient) -> None:
    response = client.put("/api/email-verification", json={"token": "nonsense\0"})

    assert (response.status_code, slug(response)) == (400, "invalid-token")


@pytest.mark.requirement("H1")
@pytest.mark.parametrize("levels", [MAX_NESTING, MAX_NESTING + 1])
@pytest.mark.parametrize("shape", ["lists", "objects", "both"])
def test_json_nested_deeper_than_the_limit_is_rejected(levels: int, shape: str) -> None:
    value: Any = 1
    for level in range(levels):
        as_list = shape == "lists" or (shape == "both" and level % 2)
        value = [value] if as_list else {"a": value}
    body = json.dumps(value).encode()

    if levels <= MAX_NESTING:
        assert parse_json(body) == value
    else:
        with pytest.raises(MalformedRequest):
            parse_json(body)


_numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | _numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
_pieces = st.lists(
    st.sampled_from([*'{}[],:"\\0-.e+ ', "\\u", "d800", "NaN", "null", "tru"]), max_size=40
).map("".join)
_halves = st.text(st.characters(codec=None)).map(lambda text: text.encode("utf-8", "surrogatepass"))


@pytest.mark.requirement("H1")
@given(value=_json)
def test_valid_json_is_parsed_unchanged(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.requirement("H1")
@given(body=st.binary() | _halves | _pieces.map(str.encode))
def test_any_bytes_parse_as_json_or_are_malformed(body: bytes) -> None:
    try:
        value = parse_json(body)
    except MalformedRequest:
        return
    json.dumps(value, allow_nan=False).encode()
    assert parse_json(json.dumps(value).encode()) == value


# --- H1: other parsers -------------------------------------------------------------

_text = st.text() | st.text(alphabet=string.printable)


_near = st.sampled_from(["0", "-0", "00", "1.5", "1e3", "٣", "²", " 5", "5 ", "+5", "9" * 30, "0x1f"])


@pytest.mark.requirement("H1")
@given(value=_text | _near)
@example("Wed, 21 Oct 2026 07:28:00 GMT")
def test_any_retry_after_parses_as_seconds_or_none(value: str) -> None:
    """A date is relative to the response's own Date."""
    headers = {"retry-after": value, "date": "Wed, 21 Oct 2026 07:27:00 GMT"}
    seconds = HttpResponse(429, headers, b"").retry_after

    if value.strip()[:1].isalpha():
        assert seconds is None or seconds >= 0
        assert seconds == 60 or value != "Wed, 21 Oct 2026 07:28:00 GMT"
    else:
        assert seconds is None or (0 <= seconds < 10**9 and seconds - 1 < float(value) <= seconds)


@pytest.mark.requirement("H1")
@given(raw=st.binary())
def test_any_bytes_unpack_as_a_session_or_none(raw: bytes) -> None:
    assert isinstance(unpack(raw), SessionData | None)


_sessions = st.fixed_dictionaries(
    {"created_at": st.floats(0, 2**30)},
    optional={
        "user_id": st.none() | st.integers(1, 2**31 - 1),
        "epoch": st.none() | st.integers(-(2**63), 2**63 - 1),
        "cookie_set_at": st.floats(0, 2**32, exclude_max=True),
        "signed_in_at": st.none() | st.floats(0, 2**32, exclude_max=True),
        "grant_id": st.none() | st.text(),
        "owner_epoch": st.none() | st.integers(-(2**63), 2**63 - 1),
        "address": st.text(),
        "user_agent": st.text(),
        "spotify_user_id": st.none() | st.integers(1, 2**31 - 1),
    },
)


@pytest.mark.requirement("H1")
@given(
    data=_sessions,
    more=st.dictionaries(st.text(), _json.filter(lambda value: not _is_huge(value)), max_size=2),
)
def test_session_with_an_unknown_or_mistyped_field_is_none(
    data: dict[str, Any], more: dict[str, Any]
) -> None:
    assert unpack(msgspec.msgpack.encode(data)) == SessionData(**data)

    found = unpack(msgspec.msgpack.encode(data | more))

    if set(more) - {field.name for field in msgspec.structs.fields(SessionData)}:
        assert found is None
    else:
        assert isinstance(found, SessionData | None)


def _is_huge(value: Any) -> bool:
    """Check for integers that msgpack cannot represent."""
    if isinstance(value, dict | list):
        return any(map(_is_huge, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


_hostile = st.sampled_from(
    [
        *("//", "@", ",", "*", "null", "true ", "-1", "1e5", "٣", "9" * 5_000, "http://", "https://["),
        *("http://[::1", "http://a:b", "http://a:99999", "http://a:-1", "https://a:0", "https://a]"),
        *("http://\u2100.com", "http://a\u2044b", "http://exa mple", "http://xn--a"),
        *("mysql+mysqldb://", "mysql+mysqldb://u:p@h:x/d", "sqlite://", "sqlite:///\0"),
        *(
            "redis://:",
            "redis://a:b/c",
            "unix://",
            "unix:",
            "redis://h/0?socket_timeout=x",
            "rediss://h?db=y",
        ),
        *("redis://h:0x50", "redis://h?ssl=maybe", "smtp://[", "smtp://a:99999", "smtps://u:p@"),
    ]
)


@pytest.mark.requirement("H1")
@settings(max_examples=200)
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(set(Config.model_fields) - {"uses_sandbox"})).map(str.upper),
        _hostile | st.text(max_size=60) | st.tuples(_hostile, st.text(max_size=10)).map("".join),
        max_size=4,
    ),
    production=st.booleans(),
)
def test_any_settings_are_accepted_or_reported(changes: dict[str, str], production: bool) -> None:
    environment = {**SETTINGS, "APP_ENV": "production" if production else "development", **changes}
    with suppress(ConfigError):
        assert isinstance(Config.from_env(environment), Config)


# --- H3: normalization ---------------------------------------------------------------------------

INVISIBLE = "\u200b\u200d\u2060\ufeff\u00ad\u202e\u2066\u061c\u034f\ufe0f\u115f\u1160\u2800\U000e0101"
# Characters that fold, compose, expand, disappear, change direction, or need four bytes.
_peculiar = st.sampled_from(
    "aAäÄ\u0308ßẞsSıIİi\u0307K\u212akÅ\u212båﬁﬀ\u0345ι\u1fb3\u03c3\u03c2Σ０Ａａ\uff21①²ªºǅǆ"
    f"\u00a0\u2003\u3000 \t\n\u3164{INVISIBLE}"
    "😀𝐚𝒜𐐀𐐨가각\u1100\u1161Ⓐ\u2126ΩθϑΘϴµμ\0.-_@0"
)
_names = st.text(alphabet=_peculiar, max_size=12) | st.text(max_size=12)


@pytest.mark.requirement("H3")
@settings(max_examples=300)
@given(name=_names)
def test_normal_form_is_idempotent(name: str) -> None:
    normal = normalization.normal_form(name)

    assert normalization.normal_form(normal) == normal
    assert normalization.normal_form(name.upper().lower()) == normalization.normal_form(
        name.upper().lower().casefold()
    )
    assert normalization.normal_form(f" \t{name}\u3000\n") == normal
    assert normal == normal.strip()


@pytest.mark.requirement("H3")
@given(name=_names)
def test_usernames_and_email_addresses_are_printable_and_disjoint(name: str) -> None:
    normal = normalization.normal_form(name)
    address = normalization.address_form(f"{name}@example.com")

    assert not (is_username(normal) and normalization.is_email(normal))
    for good, text in ((is_username(normal), normal), (normalization.is_email(address), address)):
        if good:
            assert text.replace("\u200c", "").replace("\u200d", "").isprintable()
            assert not any(char.isspace() for char in text)
            assert not set(text) & set(INVISIBLE)


_domains = st.lists(
    st.sampled_from(
        ["xn--", "bcher-kva", "strae-oqa", "ß", "ü", "u\u0308", "Σ", "A", "한", ".", "\uff0e", "\u3002", "-"]
    )
    | st.characters(codec="utf-8"),
    max_size=8,
).map("".join)


@pytest.mark.requirement("H3")
@settings(max_examples=200)
@given(local=_names, domain=_domains)
def test_both_forms_of_an_email_address_agree(local: str, domain: str) -> None:
    entered = f"{local}@{domain}.example"
    normal = normalization.address_form(entered)

    assert normalization.address_form(normal) == normal
    if normalization.is_email(entered):
        sent = normalization.sending_form(entered)
        assert normalization.sending_form(sent) == sent
        assert normalization.address_form(sent) == normal
        assert sent.rpartition("@")[2].isascii()
        assert normal in normalization.spellings(sent) & normalization.spellings(entered)


@pytest.mark.requirement("H3")
@given(text=st.text(max_size=300))
def test_any_text_is_an_email_address_or_not(text: str) -> None:
    normal = normalization.address_form(text)
    assert normalization.address_form(normal) == normal
    if normalization.is_email(normal):
        local, _, domain = normal.rpartition("@")
        assert 1 <= len(local) <= 64
        assert "." in domain
        assert len(normal) <= 254


@pytest.mark.requirement("H3")
@given(
    pair=st.tuples(_names, _names)
    | _names.map(lambda name: (name, name.swapcase()))
    | _names.map(lambda name: (name, f"{name} "))
    | _names.map(lambda name: (name, f"{name}\0"))
)
def test_columns_compare_like_the_normal_form(app: Flask, pair: tuple[str, str]) -> None:
    one, other = (normalization.normal_form(name)[:64] for name in pair)
    one, other = one.strip(), other.strip()
    stored = User(username=one, email="x@example.com", password_hash="x")
    with app.app_context(), sa.orm.Session(db.engine) as session:
        session.add(stored)
        session.flush()
        found = session.scalar(sa.select(User.id).where(User.username == other))
        session.rollback()

    assert (found is not None) is (one == other)


# Pairs of names, and whether they belong to one account. Many database collations would disagree.
PAIRS = [
    ("ada", "ADA", True),
    ("ada", " ada\u3000", True),
    ("ada", "ａｄａ", True),
    ("ada", "𝐚𝐝𝐚", True),
    ("kay", "\u212aay", True),
    ("ängström", "\u212bngstro\u0308m".replace("\u212b", "A\u0308"), True),
    ("strasse", "Straße", True),
    ("ﬁona", "fiona", True),
    ("σίσυφος", "ΣΊΣΥΦΟΣ", True),
    ("αι", "α\u0345", True),
    ("irem", "İREM", True),  # folding leaves a dot above the i
    ("सुनील", "सुनील\u3000", True),
    ("क़लम", "क\u093cलम", True),
    ("مُحَمَّد", "محمد", False),
    ("ὦι", "\u1fa6", True),
    ("𐐨𐐩", "𐐀𐐁", True),
    ("x2", "x²", True),
    ("ada", "adä", False),
    ("ada", "ad\u0430", False),
    ("ada", "ada0", False),
    ("ada", "adá", False),
    ("io", "ıo", False),
    ("o1", "ol", False),
    ("nn", "ññ", False),
    ("ada", "ada_", False),
    ("가나", "각나", False),
]
CONFUSABLE_NAMES = [
    *(f"a{mark}da" for mark in INVISIBLE),
    *(
        "ad a",
        "a\tda",
        "ada\u0345\u034f",
        "ada\u3164",
        "\u1160\u1160",
        "ada😀",
        "a\u0308\u0308b",
        "@da",
    ),
]


def sign_up(client: FlaskClient, name: str, address: str) -> TestResponse:
    return client.post("/api/register", json={"username": name, "email": address, "password": PASSWORD})


@pytest.mark.requirement("H3")
def test_usernames_are_equal_exactly_if_their_normal_forms_are(
    new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    for number, (one, other, same) in enumerate(PAIRS):
        assert (normalization.normal_form(one) == normalization.normal_form(other)) is same, (one, other)
        assert sign_up(new_client(), one, f"one{number}@example.com").status_code == 201, one
        second = sign_up(new_client(), other, f"other{number}@example.com")
        if same:
            assert (second.status_code, slug(second)) == (409, "username-taken"), (one, other)
            body = {"login": other, "password": PASSWORD}
            assert new_client().post("/api/login", json=body).status_code == 200, other
        else:
            assert second.status_code == 201, (one, other)
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(sa.delete(User))
        app.extensions["backline"].redis.flushall()


@pytest.mark.requirement("H3")
def test_email_addresses_are_equal_exactly_if_their_normal_forms_are(
    new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    for number, (one, other, _) in enumerate(PAIRS[::4]):
        addresses = [f"{name.strip()}@example.com" for name in (one, other)]
        assert sign_up(new_client(), f"one{number}", addresses[0]).status_code == 201, one
        second = sign_up(new_client(), f"other{number}", addresses[1])
        same = normalization.address_form(addresses[0]) == normalization.address_form(addresses[1])
        assert second.status_code == (409 if same else 201), (one, other)
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(sa.delete(User))


@pytest.mark.requirement("H3")
@on_sqlite
def test_email_is_sent_to_the_domain_as_entered(new_client: Callable[[], FlaskClient]) -> None:
    """Case folding would turn one domain into the other, whose owner would receive the emails."""
    for number, address in enumerate(("x@straße.example", "x@strasse.example")):
        response = sign_up(new_client(), f"person{number}", address.title())
        assert (response.status_code, response.json["email"]) == (201, address)
        body = {"login": address.upper() if "ß" not in address else address, "password": PASSWORD}
        assert new_client().post("/api/login", json=body).status_code == 200


@pytest.mark.requirement("H3")
@on_sqlite
def test_username_with_deceptive_characters_is_rejected(client: FlaskClient) -> None:
    for name in CONFUSABLE_NAMES:
        response = sign_up(client, name, "ada@example.com")
        assert response.status_code == 422, ascii(name)
        assert list(response.json["errors"]) == ["username"]


@pytest.mark.requirement("H3")
@on_sqlite
def test_email_address_with_deceptive_characters_is_rejected(client: FlaskClient) -> None:
    for mark in INVISIBLE:
        response = sign_up(client, "ada", f"a{mark}da@example.com")
        assert response.status_code == 422, ascii(mark)
        assert list(response.json["errors"]) == ["email"]


# --- H4: queries and paths --------------------------------------------------------------------------


def readable(app: Flask) -> list[Route]:
    document = documented(app)
    return [route for route in every_route(app) if route.method == "GET" and operation(document, route)]


def query_parameters(document: dict[str, Any], route: Route) -> list[str]:
    found = operation(document, route).get("parameters", [])
    # That of the gateway stands for all parameters of the Web API.
    return [
        parameter["name"]
        for parameter in found
        if parameter.get("in") == "query" and parameter["schema"].get("type") != "object"
    ]


def without_variable_members(response: TestResponse) -> object:
    """Return a response without members that differ each time."""
    body = response.json
    for name in ("authorize_url", "exported_at", "request_id", "expires_in"):
        body.pop(name, None)
    for session in [*body.get("items", []), *body.get("sessions", [])]:
        session.pop("last_seen_at")
    return response.status_code, body


IGNORED = [
    "utm_source=mail",
    "page=-1&page=2",
    "id=1",
    "=",
    "&&&",
    "%00",
    "%ff=%fe",
    "a[]=1",
    "?",
    "x" * 3_000,
]


@pytest.mark.requirement("H4")
@on_sqlite
@pytest.mark.parametrize("who", ["visitor", "ada"])
def test_unknown_query_parameters_are_ignored(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, who: str
) -> None:
    if who == "ada":
        ada(client, sandbox)
    for route in readable(app):
        plain = without_variable_members(client.get(route.path))
        for query in IGNORED:
            assert without_variable_members(client.get(route.path, query_string=query)) == plain, (
                route,
                query,
            )


@pytest.mark.requirement("H4")
@on_sqlite
def test_repeated_query_parameter_is_rejected(client: FlaskClient, app: Flask) -> None:
    document, checked = documented(app), 0
    for route in readable(app):
        for name in query_parameters(document, route):
            for query in (f"{name}=1&{name}=2", f"{name}=1&{name}=1", f"{name}=&{name}="):
                response = client.get(route.path, query_string=query)
                assert (response.status_code, slug(response)) == (422, "validation-error"), (route, query)
                assert list(response.json["errors"]) == [name]
                checked += 1
    assert checked


@pytest.mark.requirement("H4")
@on_sqlite
def test_no_query_parameter_value_causes_a_server_error(client: FlaskClient, app: Flask) -> None:
    values = ["", "%00", "%ff", "%ed%a0%80", "x" * 5000, "%0d%0aX-Evil:%201", "💥", "..%2f", "%", "+", "[]"]
    document = documented(app)
    for route in readable(app):
        for name in query_parameters(document, route):
            for value in values:
                response = client.get(route.path, query_string=f"{name}={value}")
                assert response.status_code < 500, (route, name, value)
                assert "X-Evil" not in response.headers


MALFORMED_IDS = [
    *("%00", "%ff", "%ed%a0%80", "%0d%0aX-Evil:1", "..", "%2e%2e", "..%2f..", "%2f", "a%2fb", "%20", "%25"),
    *("-1", "0", "null", "NaN", "*", "%2525", "'", "';--", "{session_id}", "<script>", "a;b", "a,b", "[a-z]"),
    *("💥", "x" * 5_000),
]


@pytest.mark.requirement("H4")
@on_sqlite
def test_malformed_ids_are_treated_like_unknown_ids(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    before = Snapshot(app)
    document = documented(app)
    with_ids = [
        route
        for route in every_route(app)
        if "{" in route.template and operation(document, route) and not route.is_gateway
    ]
    assert with_ids
    for route in with_ids:
        prefix = route.template.partition("{")[0]
        for malformed in MALFORMED_IDS:
            body = valid_body(document, route) if route.method == "POST" else None
            response = client.open(f"{prefix}{malformed}", method=route.method, json=body)
            assert response.status_code in (204, 404), (route, malformed)
        assert Snapshot(app) == before, route


# --- H5: methods, statuses and headers ----------------------------------------------------------------


@pytest.mark.requirement("H5")
@on_sqlite
def test_other_methods_are_405_and_allow_lists_the_valid_ones(client: FlaskClient, app: Flask) -> None:
    own: dict[str, set[str]] = {}
    for route in every_route(app):
        own.setdefault(route.path, {"OPTIONS"}).update(
            {"GET", "HEAD"} if route.method == "GET" else {route.method}
        )
    for path, allowed in own.items():
        for method in (*METHODS, "TRACE", "CONNECT", "PROPFIND", "QUERY", "NONSENSE"):
            response = client.open(path, method=method, buffered=True)
            assert (response.status_code == 405) is (method not in allowed), (path, method)
            if response.status_code == 405 or method == "OPTIONS":
                assert set(response.allow) == allowed, path
            if response.status_code == 405 and method != "HEAD":
                assert slug(response) == "method-not-allowed", (path, method)


@pytest.mark.requirement("H5")
@on_sqlite
def test_head_responds_like_get_without_a_body(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    for client in (new_client(), ada(new_client(), sandbox)):
        for route in every_route(app):
            if route.method == "GET":
                head = another_tab(client).head(route.path, buffered=True)
                get = another_tab(client).get(route.path, buffered=True)
                assert head.data == b"", route
                assert head.status_code == get.status_code, route
                assert set(head.headers.keys()) == set(get.headers.keys()), route
                assert head.content_type == get.content_type, route


@pytest.mark.requirement("H5")
@on_sqlite
def test_bodies_are_checked_for_type_then_syntax_then_validity(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    for route, schema, good in routes_with_body(app):
        text = json.dumps(good)
        for other in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/xml",
            "nonsense",
            "json",
        ):
            response = send(client, route, data=text, content_type=other)
            assert (response.status_code, slug(response)) == (415, "unsupported-media-type"), (route, other)
        for media_type in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"):
            assert send(client, route, data="{", content_type=media_type).status_code == 400, route
            wrong = send(client, route, data='{"no such member": 1}', content_type=media_type)
            assert (wrong.status_code, "no such member" in wrong.json["errors"]) == (422, True), route
        large = send(client, route, data=b" " * 65_537, content_type="application/json")
        assert (large.status_code, slug(large)) == (413, "payload-too-large"), route
        if schema.get("required"):
            without = send(client, route)
            # Only accounts that have a password need it.
            errors = set(without.json["errors"]) - {"current_password"}
            assert (without.status_code, errors) == (422, set(schema["required"])), route


@pytest.mark.requirement("H5")
@on_sqlite
def test_requests_that_end_something_can_be_repeated(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    for method, path in (
        ("DELETE", "/api/spotify"),
        ("DELETE", f"/api/user/sessions/{'0' * 32}"),
        ("DELETE", "/api/user/tokens/999"),
        ("POST", "/api/logout"),
    ):
        after: list[Snapshot] = []
        for _ in range(3):
            response = client.open(path, method=method)
            assert (response.status_code, response.data) == (204, b""), path
            assert "Content-Type" not in response.headers, path
            after.append(Snapshot(app))
        assert after[0] == after[1] == after[2], path


@pytest.mark.requirement("H5")
@on_sqlite
def test_ending_all_other_sessions_can_be_repeated(client: FlaskClient) -> None:
    """The account gets a new epoch each time, and this session a new id."""
    register(client, "ada")
    for _ in range(3):
        assert client.delete("/api/user/sessions").status_code == 204
        [session] = client.get("/api/user/sessions").json["items"]
        assert session["current"]


@pytest.mark.requirement("H5")
@on_sqlite
def test_created_account_has_a_location(client: FlaskClient) -> None:
    response = sign_up(client, "ada", "ada@example.com")

    assert response.status_code == 201
    assert client.get(response.headers["Location"]).json == response.json


@pytest.mark.requirement("H5")
@on_sqlite
def test_429_has_retry_after_and_401_has_a_challenge(client: FlaskClient) -> None:
    body = {"login": "ada", "password": "not it"}
    responses = [client.post("/api/login", json=body) for _ in range(12)]

    assert [response.status_code for response in responses] == [401] * 10 + [429] * 2
    assert all(response.headers["WWW-Authenticate"] for response in responses[:10])
    assert all(int(response.headers["Retry-After"]) > 0 for response in responses[10:])


@pytest.mark.requirement("H5")
@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
@on_sqlite
def test_503_has_retry_after_on_every_route(client: FlaskClient) -> None:
    client.set_cookie("backline_session", "A" * 43)
    for route in every_route(client.application):
        if operation(documented(client.application), route) and not route.is_oauth:
            headers = {"Authorization": f"Bearer {new_token()}"} if route.is_bearer_only else {}
            response = send(client, route, headers=headers)
            assert (response.status_code, slug(response)) == (503, "service-unavailable"), route
            assert int(response.headers["Retry-After"]) > 0, route
