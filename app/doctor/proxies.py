"""Checks how requests arrive at the API through all proxies: with which scheme, host, and client address."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from app.doctor.result import CheckResult, failure, ok
from app.infra.http_client import HttpClient, TransportError
from app.web.arrival_report import HEADER, ArrivalReport
from config import Config

# An address for documentation (RFC 5737), so no proxy has it.
PRETENDED = "192.0.2.1"
_TLS_ERROR = "SSLError"


def check_proxies(config: Config, url: str, client: HttpClient) -> Iterator[CheckResult]:
    """Send a request to the API's public URL, and compare what arrived with what was sent."""
    headers = {HEADER: ArrivalReport.request_token(config.secret_key), "X-Forwarded-For": PRETENDED}
    try:
        response = client.send("GET", f"{url.rstrip('/')}/api/session", headers=headers)
    except TransportError as error:
        yield failure(
            f"proxies: no response from {url} ({error})",
            "Browsers do not trust its certificate. Install one with its whole chain, such as certbot's."
            if str(error) == _TLS_ERROR
            else "Check the URL, the DNS entry, the firewall, and whether nginx runs.",
        )
        return
    arrived = ArrivalReport.parse(response.headers)
    if arrived is None:
        yield failure(
            f"proxies: {url} leads to something else ({response.status}, without Backline's report)",
            "Check that the URL is this API's, that nginx passes /api on to gunicorn, and that gunicorn runs "
            "with the same SECRET_KEY and release as this command.",
        )
        return
    yield _check_scheme(url, arrived.scheme)
    yield _check_host(url, arrived.host)
    yield _check_hops(config, arrived.forwarded_for, arrived.client)


def _check_scheme(url: str, scheme: str) -> CheckResult:
    sent = urlsplit(url).scheme
    if scheme == sent:
        return ok(f"proxies: requests arrive as {scheme}")
    return failure(
        f"proxies: a request over {sent} arrives as {scheme}",
        "The proxy must replace X-Forwarded-Proto, as deploy/nginx.conf does, and must be on this machine or "
        "counted in TRUSTED_PROXIES. Otherwise, links begin with the wrong scheme.",
    )


def _check_host(url: str, host: str) -> CheckResult:
    sent = urlsplit(url).hostname or ""
    if (urlsplit(f"//{host}").hostname or "") == sent:
        return ok(f"proxies: requests arrive for {host}")
    return failure(
        f"proxies: a request for {sent} arrives for {host}",
        "Let the proxy pass the Host header on: proxy_set_header Host $host. Otherwise, links are wrong.",
    )


def _check_hops(config: Config, forwarded_for: list[str], client: str) -> CheckResult:
    """Compare the setting with the number of entries that proxies wrote, after what a client can pretend."""
    pretended = forwarded_for.index(PRETENDED) + 1 if PRETENDED in forwarded_for else 0
    hops = len(forwarded_for) - pretended
    if hops == config.trusted_proxies:
        return ok(
            f"proxies: {hops} add to X-Forwarded-For, as TRUSTED_PROXIES says",
            f"To the API, this command has the address {client}. If that is a CDN's or load balancer's, all "
            "visitors share it: list it in deploy/nginx.conf (set_real_ip_from).",
        )
    problem = "people could choose the address that limits count them under"
    if hops > config.trusted_proxies:
        problem = "all visitors share a proxy's address, and the rate limits"
    return failure(
        f"proxies: {hops} add to X-Forwarded-For, but TRUSTED_PROXIES is {config.trusted_proxies}",
        f"Set TRUSTED_PROXIES={hops}. Otherwise, {problem}.",
    )
