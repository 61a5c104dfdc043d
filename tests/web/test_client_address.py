"""Parsing the client's address from the connection and from X-Forwarded-For."""

import logging

import pytest
from flask import Flask, request

from app.web.client_address import client_network
from tests.conftest import MakeApp
from tests.helpers.flows import register

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PEER = "192.0.2.1"


@pytest.fixture
def behind_proxy(make_app: MakeApp) -> Flask:
    return make_app(TRUSTED_PROXIES="1")


def address_of(app: Flask, forwarded: str | None, peer: str = PEER) -> tuple[str | None, str]:
    """Return the address that a request is logged with, and the one it is counted under."""
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    with app.test_client() as client:
        assert (
            client.get("/api/session", headers=headers, environ_base={"REMOTE_ADDR": peer}).status_code == 200
        )
        return request.remote_addr, client_network()


def test_address_is_parsed_in_every_format(behind_proxy: Flask) -> None:
    for forwarded, address in {
        "203.0.113.7": "203.0.113.7",
        "203.0.113.7:51234": "203.0.113.7",
        ' "203.0.113.7:51234" ': "203.0.113.7",
        "[203.0.113.7]:80": "203.0.113.7",
        '"203.0.113.7:_hidden"': "203.0.113.7",
        "2001:db8::7": "2001:db8::7",
        "2001:DB8:0:0:0:0:0:7": "2001:db8::7",
        "[2001:db8::7]": "2001:db8::7",
        "[2001:db8::7]:443": "2001:db8::7",
        '"[2001:db8::7]"': "2001:db8::7",
        '"[2001:db8::7]:443"': "2001:db8::7",
        "[2001:db8::7]:_h-1.x": "2001:db8::7",
        "fe80::1%eth0": "fe80::1",
        "[fe80::1%25eth0]:443": "fe80::1",
        "::ffff:203.0.113.7": "203.0.113.7",
        "[::ffff:203.0.113.7]:51234": "203.0.113.7",
        "198.51.100.1, 203.0.113.7:51234": "203.0.113.7",
        'unknown, "[2001:db8::7]:443"': "2001:db8::7",
        '"open, 203.0.113.7': "203.0.113.7",
    }.items():
        counted = "2001:db8::/64" if address == "2001:db8::7" else address.replace("fe80::1", "fe80::/64")
        assert address_of(behind_proxy, forwarded) == (address, counted), forwarded


def test_entry_without_an_address_counts_as_the_peer(behind_proxy: Flask) -> None:
    for forwarded in (
        *("unknown", "_hidden", "_SEVKISEK", '"_gazonk:47011"', "unknown:47011", "", " ", ",", "-", "null"),
        *("203.0.113.7,", "203.0.113.7, unknown", "203.0.113.256", "203.0.113.7:port", "203.0.113", "1"),
        *(
            "203.0.113.7:123456",
            "[2001:db8::7",
            "2001:db8::7]:443",
            "2001:db8::g",
            "[]",
            "[]:443",
            "::",
            "0.0.0.0:80",
        ),
        *("for=203.0.113.7", "203.0.113.7;proto=https", "api.example.com", "x" * 7_000, ":" * 7_000, "\xe9"),
        *("203.0.113.7\x00", "203.0.113.07", "'; DROP TABLE users", "127.0.0.1\t127.0.0.2"),
    ):
        for peer, counted in ((PEER, PEER), ("2001:db8:1::1", "2001:db8:1::/64")):
            assert address_of(behind_proxy, forwarded, peer) == (peer, counted), forwarded


def test_farthest_trusted_proxy_that_reports_an_address_decides(make_app: MakeApp) -> None:
    app = make_app(TRUSTED_PROXIES="2")
    for forwarded, address in {
        "203.0.113.7, 198.51.100.1": "203.0.113.7",
        "10.0.0.1, 203.0.113.7:443, 198.51.100.1": "203.0.113.7",
        "10.0.0.1, unknown, 198.51.100.1": "198.51.100.1",
        "203.0.113.7, unknown": "203.0.113.7",
        "unknown, unknown": PEER,
        "203.0.113.7": "203.0.113.7",  # deploy/nginx.conf replaces the header
    }.items():
        assert address_of(app, forwarded)[0] == address, forwarded


def test_without_trusted_proxies_the_connection_decides(make_app: MakeApp) -> None:
    app = make_app()
    for peer, address in {
        PEER: PEER,
        "::ffff:192.0.2.1": PEER,
        "": "127.0.0.1",
        "unix:": "127.0.0.1",
    }.items():
        assert address_of(app, "203.0.113.7", peer)[0] == address, peer


def test_session_list_shows_the_parsed_address(behind_proxy: Flask) -> None:
    client = behind_proxy.test_client()
    client.environ_base |= {"REMOTE_ADDR": PEER, "HTTP_X_FORWARDED_FOR": '10.0.0.1, "[2001:db8::7]:443"'}
    register(client, "ada")

    (session,) = client.get("/api/user/sessions").json["items"]

    assert session["ip"] == "2001:db8::7"


@pytest.mark.parametrize(
    ("proxies", "forwarded", "reason"),
    [
        ("0", "203.0.113.7", "header_not_trusted"),
        ("2", "203.0.113.7", "fewer_proxies"),
        ("1", "203.0.113.7", None),
        ("1", "10.0.0.1, 203.0.113.7", None),
        ("2", None, None),  # an operator on this machine
    ],
)
def test_mismatch_with_proxy_settings_is_logged_once(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    proxies: str,
    forwarded: str | None,
    reason: str | None,
) -> None:
    app = make_app(TRUSTED_PROXIES=proxies)
    for _ in range(3):
        address_of(app, forwarded)

    found = [record for record in caplog.records if record.getMessage() == "proxy_settings_mismatch"]
    assert [vars(record)["reason"] for record in found] == ([reason] if reason else [])
    assert all(record.levelno == logging.WARNING for record in found)
