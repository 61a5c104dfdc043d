"""`flask doctor --url` asks the real service how requests arrive through the real nginx."""

import json
import socket
from typing import Any

import pytest
from flask import Flask

from app.doctor.proxies import check_proxies
from app.doctor.result import Status
from app.infra.http_client import HttpClient
from app.web.arrival_report import HEADER
from config import Config
from tests.helpers.raw_http import Https
from tests.helpers.servers import Nginx, Server
from tests.system.deploy.conftest import StartNginx

pytestmark = pytest.mark.processes

WRONG_PROXY = {
    "proxy_set_header Host $host; ": "proxy_set_header Host elsewhere.example; ",
    "proxy_set_header X-Forwarded-For $remote_addr;": (
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    ),
    "proxy_set_header X-Forwarded-Proto $scheme;": "proxy_set_header X-Forwarded-Proto http;",
}


@pytest.fixture(autouse=True)
def resolve_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup: Any = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: lookup("127.0.0.1" if host == Nginx.HOST else host, *more, **named),
    )


def failures(settings: dict[str, str], nginx: Nginx, *, trusts_certificate: bool = True) -> list[str]:
    client = HttpClient(str(nginx.certificate) if trusts_certificate else None)
    url = f"https://{Nginx.HOST}:{nginx.port}/"
    results = list(check_proxies(Config.from_env(settings), url, client))
    client.close()
    assert Status.WARNING not in {result.status for result in results}
    return [f"{result.summary}: {result.advice}" for result in results if result.status is Status.FAILURE]


@pytest.mark.requirement("K1")
def test_our_nginx_is_as_the_settings_say(behind_nginx: dict[str, str], nginx: Https) -> None:
    assert failures(behind_nginx, nginx.nginx) == []


def test_number_of_proxies_is_counted(
    behind_nginx: dict[str, str], nginx: Https, api: Server, another_nginx: StartNginx
) -> None:
    appending = another_nginx(api.port, WRONG_PROXY)

    [too_few] = failures({**behind_nginx, "TRUSTED_PROXIES": "0"}, nginx.nginx)
    [too_many] = failures({**behind_nginx, "TRUSTED_PROXIES": "2"}, nginx.nginx)
    wrong_scheme, wrong_host, *wrong_number = failures(behind_nginx, appending.nginx)

    assert "Set TRUSTED_PROXIES=1. Otherwise, all visitors share" in too_few
    assert "Set TRUSTED_PROXIES=1. Otherwise, people could choose" in too_many
    assert "a request over https arrives as http:" in wrong_scheme
    assert f"a request for {Nginx.HOST} arrives for elsewhere.example" in wrong_host
    assert wrong_number == []  # the address that the command pretended to have does not count


def test_only_who_knows_the_secret_gets_a_report(
    behind_nginx: dict[str, str], nginx: Https, another_nginx: StartNginx
) -> None:
    [other_secret] = failures({**behind_nginx, "SECRET_KEY": "another-secret-key"}, nginx.nginx)
    [untrusted] = failures(behind_nginx, nginx.nginx, trusts_certificate=False)
    [no_app] = failures(behind_nginx, another_nginx(1).nginx)

    assert "leads to something else (200, " in other_secret
    assert "leads to something else (502, " in no_app
    assert "do not trust its certificate" in untrusted
    response = nginx.get("/api/session", f"{HEADER}: report.now.signed")
    assert HEADER not in response.headers


@pytest.mark.sqlite_only
def test_command_asks_the_service(app: Flask, api: Server) -> None:
    report = app.test_cli_runner().invoke(args=["doctor", "--json", "--url", api.url])

    summaries = [result["summary"] for result in json.loads(report.output)]
    assert [summary for summary in summaries if summary.startswith("proxies: ")] == [
        "proxies: requests arrive as http",
        f"proxies: requests arrive for {api.url.removeprefix('http://')}",
        "proxies: 0 add to X-Forwarded-For, as TRUSTED_PROXIES says",
    ]
