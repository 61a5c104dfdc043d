"""deploy/nginx.conf, with a real nginx in front of a real gunicorn."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from email import message_from_string
from threading import Thread

import pytest

from app.web import problems
from tests.conftest import cannot_run, start
from tests.helpers.raw_http import (
    ORIGIN,
    Https,
    RawResponse,
    check_problem,
    exchange,
    may_read,
    request,
    send_plain,
)
from tests.helpers.servers import ROOT, Nginx, Server, Unavailable, eventually, free_port, running_nginx
from tests.system.deploy.conftest import StartNginx

pytestmark = pytest.mark.processes

CODE = "a-secret-code-of-spotify"
CALLBACK = f"/api/spotify/authorize?code={CODE}&state={CODE}"
FROM_PAGE = f"Origin: {ORIGIN}"
JSON = "Content-Type: application/json"
TOO_BIG = b'"' + b"x" * 65_536 + b'"'
HSTS = "max-age=31536000; includeSubDomains"


def chunked(body: bytes, size: int = 16_384) -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


# What is rejected before it reaches the app, by the requirement: the request, its status, slug and instance.
REJECTED = {
    "body": (
        request("POST", "/api/login", FROM_PAGE, JSON, body=TOO_BIG),
        413,
        "payload-too-large",
        "/api/login",
    ),
    "chunked body": (
        request("POST", "/api/login", FROM_PAGE, JSON, "Transfer-Encoding: chunked", body=chunked(TOO_BIG)),
        413,
        "payload-too-large",
        "/api/login",
    ),
    "line": (request("GET", f"/api/user?x={'x' * 4096}", FROM_PAGE), 414, "malformed-request", "/api/user"),
    "header": (
        request("GET", "/api/user", FROM_PAGE, f"X: {'x' * 8192}"),
        431,
        "malformed-request",
        "/api/user",
    ),
    "headers": (
        request("GET", "/api/user", *(f"X-{number}: x" for number in range(101)), FROM_PAGE),
        431,
        "malformed-request",
        "/",
    ),
    "value": (request("GET", "/api/user", FROM_PAGE, "X: \x01"), 400, "malformed-request", "/"),
    "method": (request("GE", "/api/user", FROM_PAGE), 400, "malformed-request", "/"),
    "probe": (request("GET", "/livez", FROM_PAGE), 404, "not-found", "/livez"),
    "TRACE": (request("TRACE", "/api/user", FROM_PAGE), 405, "method-not-allowed", "/api/user"),
    "host": (
        request("GET", "/api/user", FROM_PAGE, host="evil.example"),
        421,
        "malformed-request",
        "/api/user",
    ),
    "length": (
        request("GET", "/api/user", FROM_PAGE, "Content-Length: 1", "Content-Length: 2"),
        400,
        "malformed-request",
        "/api/user",
    ),
    "coding": (
        request("POST", "/api/login", FROM_PAGE, "Transfer-Encoding: gzip, chunked"),
        501,
        "malformed-request",
        "/api/login",
    ),
}


@pytest.mark.requirement("K5")
@pytest.mark.requirement("C7")
@pytest.mark.requirement("I1")
@pytest.mark.parametrize("case", REJECTED)
def test_rejection_is_a_problem_that_the_app_can_read(nginx: Https, case: str) -> None:
    sent, status, slug, path = REJECTED[case]

    response = nginx.raw(sent)

    check_problem(response, status, slug, instance=path)
    assert may_read(response)
    assert response.headers.get_all("Strict-Transport-Security") == [HSTS]
    assert bool(response.headers["Allow"]) == (status == 405)
    assert response.headers["X-Backline-Rejected"] is None


@pytest.mark.requirement("C7")
@pytest.mark.parametrize("case", REJECTED)
@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "https://evil.example",
        f"{ORIGIN}.evil.example",
        f"{ORIGIN}0",
        f"https://evil.example/{ORIGIN}",
        ORIGIN.replace("http", "https"),
    ],
)
def test_pages_on_other_sites_cannot_read_a_rejection(nginx: Https, case: str, origin: str | None) -> None:
    line = f"{FROM_PAGE}\r\n".encode()
    sent, status, *_ = REJECTED[case]
    assert line in sent

    response = nginx.raw(sent.replace(line, f"Origin: {origin}\r\n".encode() if origin else b""))

    assert response.status == status
    assert not may_read(response)
    assert response.headers.get_all("Vary") == ["Origin"]


@pytest.mark.requirement("C7")
def test_response_without_gunicorn_is_502(another_nginx: StartNginx) -> None:
    response = another_nginx(free_port()).get("/api/session", FROM_PAGE)

    check_problem(response, 502, "service-unavailable", instance="/api/session")
    assert may_read(response)


@pytest.mark.requirement("C7")
def test_response_during_maintenance_is_503(nginx: Https) -> None:
    nginx.nginx.maintenance.touch()
    response = nginx.get("/api/session", FROM_PAGE)
    nginx.nginx.maintenance.unlink()

    check_problem(response, 503, "service-unavailable", instance="/api/session")
    assert may_read(response)
    assert nginx.get("/api/session").status == 200


@pytest.mark.requirement("C7")
def test_response_from_a_stalled_gunicorn_is_504(another_nginx: StartNginx, api: Server) -> None:
    impatient = another_nginx(api.port, {"proxy_read_timeout 20s": "proxy_read_timeout 300ms"})
    with stopped(api):
        response = impatient.get("/api/session", FROM_PAGE)

    check_problem(response, 504, "service-unavailable", instance="/api/session")
    assert may_read(response)
    assert eventually(lambda: impatient.get("/api/session").status == 200)


@contextmanager
def stopped(api: Server) -> Iterator[None]:
    """Pause its processes. The arbiter is first, because it would kill paused workers."""
    for pid in api.processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(api.processes):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.requirement("L4")
@pytest.mark.requirement("C7")
def test_too_many_requests_from_one_address_are_429(another_nginx: StartNginx, api: Server) -> None:
    strict = another_nginx(api.port, {"rate=50r/s": "rate=1r/m", " burst=200 nodelay": ""})

    first, second = (strict.get("/api/session", FROM_PAGE) for _ in range(2))
    neighbour = strict.get("/api/session", "X-Forwarded-For: 127.0.0.1", source="127.0.0.2")

    assert (first.status, neighbour.status) == (200, 200)
    check_problem(second, 429, "too-many-attempts", instance="/api/session")
    assert may_read(second)


BEHIND_CDN = {
    "# set_real_ip_from 192.0.2.0/24;": "set_real_ip_from 127.0.0.8/31;",
    "# real_ip_header": "real_ip_header",
    "# real_ip_recursive": "real_ip_recursive",
}


@pytest.fixture(scope="module")
def behind_cdn(api: Server) -> Iterator[Https]:
    with ExitStack() as stack:
        yield Https(start(stack, running_nginx(api.port, BEHIND_CDN)))


@pytest.mark.parametrize(
    ("source", "forwarded", "address"),
    [
        ("127.0.0.9", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.9", "203.0.113.7:51234", "203.0.113.7"),
        ("127.0.0.9", "2001:db8::7, 127.0.0.8", "2001:db8::7"),
        ("127.0.0.9", "10.0.0.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.9", "unknown", "127.0.0.9"),
        ("127.0.0.3", "203.0.113.7", "127.0.0.3"),
    ],
)
def test_visitors_behind_a_cdn_have_separate_addresses(
    behind_cdn: Https, api: Server, source: str, forwarded: str, address: str
) -> None:
    response = behind_cdn.get("/api/session", f"X-Forwarded-For: {forwarded}", source=source)

    assert response.status == 200
    assert logged(behind_cdn, response)["address"] == address
    wanted = response.headers["X-Request-ID"]
    lines = eventually(lambda: [json.loads(line) for line in api.log.splitlines() if wanted in line])
    assert {line["client"] for line in lines} == {address}


def test_limits_count_an_ipv6_network_as_one_visitor(another_nginx: StartNginx, api: Server) -> None:
    strict = another_nginx(api.port, {**BEHIND_CDN, "rate=50r/s": "rate=1r/m", " burst=200 nodelay": ""})

    statuses = [
        (address, strict.get("/api/session", f"X-Forwarded-For: {address}", source="127.0.0.9").status)
        for address in (
            *("2001:db8::1", "2001:db8::a0a:ffff:ffff:ffff", "2001:db8:0:1::1", "2001:db8:0:1:a::"),
            *("203.0.113.7", "203.0.113.8", "::ffff:203.0.113.7", "[::ffff:203.0.113.10]:443"),
        )
    ]

    assert [status for _, status in statuses] == [200, 429, 200, 429, 200, 200, 429, 200], statuses


@pytest.mark.requirement("L1")
def test_thousand_slow_connections_from_one_address_do_not_block_others(
    another_nginx: StartNginx, api: Server
) -> None:
    patient = another_nginx(
        api.port,
        {
            "client_header_timeout 10s": "client_header_timeout 300s",
            "client_body_timeout 10s": "client_body_timeout 300s",
            "rate=50r/s": "rate=10000r/s",
        },
    )
    idle = request("GET", "/api/session").replace(b"Connection: close", b"X: idle")
    slow_header = idle[:-2]
    slow_body = request("POST", "/api/login", "Content-Length: 9") + b"x"
    with many_files(2_000), ExitStack() as stack:
        for sent in (*[idle] * 300, *[slow_header, slow_body] * 500):
            connection = stack.enter_context(patient.connection(source="127.0.0.2"))
            connection.sendall(sent)

        assert [patient.get("/api/session", source="127.0.0.1").status for _ in range(5)] == [200] * 5
        for target in ("/api/session", "/elsewhere"):
            rejected = patient.get(target, FROM_PAGE, source="127.0.0.2")
            check_problem(rejected, 429, "too-many-attempts", instance=target)
            assert may_read(rejected)


@contextmanager
def many_files(most: int) -> Iterator[None]:
    """Let this process open this many files, if the system allows it."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before, most), hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_app_in_a_native_shell_may_read_responses_from_nginx(another_nginx: StartNginx) -> None:
    origin = "capacitor://localhost"
    line = f'# EDIT\n        "{origin}" "{origin}";\n    }}'
    response = another_nginx(free_port(), {"# EDIT\n    }": line}).get("/elsewhere", f"Origin: {origin}")

    check_problem(response, 404, "not-found", instance="/elsewhere")
    assert may_read(response, origin)


@pytest.mark.requirement("K5")
@pytest.mark.requirement("C7")
def test_headers_of_the_application_are_not_repeated_by_nginx(nginx: Https) -> None:
    for target, status in (("/api/session", 200), ("/api/nothing", 404), ("/api/user", 401)):
        response = nginx.get(target, FROM_PAGE)
        assert response.status == status
        assert may_read(response)
        names = [name for name in response.headers if name not in ("Vary", "Set-Cookie")]
        assert len(names) == len(set(names))
        assert response.headers["Strict-Transport-Security"] == HSTS
        assert "nginx/" not in response.headers["Server"]


@pytest.mark.requirement("H2")
def test_request_just_within_the_limits_reaches_the_application(nginx: Https) -> None:
    largest = b'"' + b"x" * 65_533 + b'"'
    for more, body in (((), largest), (("Transfer-Encoding: chunked",), chunked(largest))):
        assert nginx.raw(request("POST", "/api/login", JSON, *more, body=body)).status == 422
    assert nginx.get(f"/api/session?{'x' * 4_000}").status == 200
    assert nginx.get("/api/session", f"X: {'x' * 8_000}").status == 200
    assert nginx.get("/api/session", *(f"X-{number}: x" for number in range(80))).status == 200


COVER = ("PUT", "/api/spotify/v1/playlists/1/images", "Content-Type: image/jpeg")
DROP_IN_COVER = ("PUT", "/v1/playlists/1/images", "Content-Type: image/jpeg")


@pytest.mark.requirement("H2")
@pytest.mark.parametrize(
    ("cover", "expected"),
    [(COVER, (409, "spotify-not-connected")), (DROP_IN_COVER, (401, "invalid-bearer-token"))],
)
def test_body_for_the_gateway_may_be_larger(
    nginx: Https, cover: tuple[str, ...], expected: tuple[int, str]
) -> None:
    for size, (status, slug) in ((262_144, expected), (262_145, (413, "payload-too-large"))):
        response = nginx.raw(request(*cover, body=b"x" * size))
        assert (response.status, response.problem["type"]) == (status, f"/problems/{slug}")
        assert response.problem["error"]["status"] == status
    assert response.problem["detail"] == response.problem["error"]["message"] == "Send at most 256 KiB."


@pytest.mark.requirement("H2")
def test_rejected_large_body_does_not_affect_the_next_request(nginx: Https) -> None:
    for _ in range(8):
        rejected = nginx.raw(request(*COVER, "Origin: https://evil.test", body=b"x" * 262_144))
        # Not a GET: nginx would send that again.
        next_one = nginx.raw(request("POST", "/api/logout"))
        assert (rejected.status, next_one.status) == (403, 204)


@pytest.mark.requirement("H2")
def test_body_beyond_the_buffers_of_nginx_is_rejected_too(nginx: Https) -> None:
    check_problem(nginx.get(f"/api/user?{'x' * 9_000}"), 414, "malformed-request")
    many = (f"X-{number}: {'x' * 8_000}" for number in range(9))
    check_problem(nginx.get("/api/user", *many), 431, "malformed-request", instance="/api/user")


@pytest.mark.requirement("I1")
def test_nginx_uses_the_same_titles_and_details_as_the_application() -> None:
    kinds = {kind.slug: kind for kind in problems.PROBLEM_TYPES.values()}
    by_status = {}
    for status, members in nginx_map("problem"):
        document = json.loads(f"{{{members}}}".replace("$status", "0"))
        by_status[status] = kinds[document["type"].removeprefix("/problems/")]
        assert document["title"] == by_status[status].title
    details = dict(nginx_map("detail"))
    assert details.keys() >= by_status.keys()
    for status, kind in by_status.items():
        assert details[status].replace("$most_kib", "64") == kind.detail
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    expected = {code for line in re.findall(r"error_page ([\d =]+)", text) for code in line.split()}
    assert expected == {
        *("400", "404", "405", "409", "413", "414", "421", "429", "500", "501", "502", "503", "504", "505"),
        *("403", "=404", "494", "=431", "497", "=400"),
    }


def nginx_map(name: str) -> list[tuple[str, str]]:
    """Return the entries of a map from statuses."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    table = re.search(rf"map \$status \${name} \{{(.+?)\n    \}}", text, re.DOTALL)
    assert table
    return re.findall(r"^ +(\S+) ['\"](.+)['\"];$", table[1], re.MULTILINE)


@pytest.mark.requirement("I1")
@pytest.mark.parametrize(
    "path",
    [
        '/"},"x":{"',
        "/%22%7D",
        "/\\u0022",
        "/\\",
        "/\xff\xfe",
        "/%00%0d%0aX:%20y",
        "/'",
        "/<script>",
        "/$status",
        "/${problem}",
    ],
)
def test_paths_cannot_break_the_problem_document_or_the_log(nginx: Https, path: str) -> None:
    response = nginx.get(path, 'User-Agent: "}\\', FROM_PAGE)

    assert response.status in (400, 404)
    check_problem(response, response.status, response.problem["type"].removeprefix("/problems/"))
    assert logged(nginx, response)["path"] == "/"


def logged(nginx: Https, response: RawResponse) -> dict[str, object]:
    """Return the log line of nginx for the request with this response."""
    found: list[dict[str, object]] = eventually(
        lambda: [
            line
            for line in map(json.loads, nginx.nginx.lines)
            if line["request_id"] == response.headers["X-Request-ID"]
        ]
    )
    (line,) = found
    return line


def http_2(nginx: Https, *arguments: str) -> RawResponse:
    """Return the response that curl gets (Python has no client for this). The last argument is the target."""
    if shutil.which("curl") is None:
        cannot_run(Unavailable("curl is not installed: apt-get install curl"))
    *options, target = arguments
    at = f"{Nginx.HOST}:{nginx.nginx.port}"
    trust = ["--cacert", str(nginx.nginx.certificate), "--resolve", f"{at}:127.0.0.1"]
    done = subprocess.run(
        ["curl", "-sSi", "--http2", *trust, *options, f"https://{at}{target}"],
        check=True,
        capture_output=True,
        text=True,
    )
    head, _, body = done.stdout.partition("\n\n")
    line, _, headers = head.partition("\n")
    protocol, status = line.split()
    assert protocol == "HTTP/2"
    return RawResponse(int(status), message_from_string(headers), body.encode())


@pytest.mark.requirement("I1")
def test_responses_over_http_2_are_the_same(nginx: Https, api: Server) -> None:
    check_problem(
        http_2(nginx, "-d", "x" * 65_537, "/api/login"), 413, "payload-too-large", instance="/api/login"
    )
    check_problem(http_2(nginx, f"/api/user?{'x' * 4096}"), 414, "malformed-request", instance="/api/user")
    check_problem(http_2(nginx, "/metrics"), 404, "not-found", instance="/metrics")
    assert http_2(nginx, "/api/session").problem["authenticated"] is False
    assert http_2(nginx, CALLBACK).status == 400
    assert CODE not in nginx.nginx.log


def test_public_keys_are_published(nginx: Https) -> None:
    response = nginx.get("/.well-known/jwks.json", FROM_PAGE)

    assert response.status == 200
    assert json.loads(response.body)["keys"][0]["kty"] == "OKP"
    for name, value in {"Access-Control-Allow-Origin": "*", "Strict-Transport-Security": HSTS}.items():
        assert response.headers.get_all(name) == [value]


@pytest.mark.requirement("K5")
def test_plain_http_is_rejected_and_not_redirected(nginx: Https) -> None:
    response = send_plain(nginx.nginx.port, request("GET", CALLBACK, FROM_PAGE))

    check_problem(response, 400, "malformed-request", instance="/api/spotify/authorize")
    assert response.headers["Location"] is None
    assert response.headers["Strict-Transport-Security"] is None  # RFC 6797 section 7.2: never on plain http


@pytest.mark.parametrize(
    "target",
    [
        "/livez",
        "/readyz",
        "/metrics",
        "/operator",
        "//livez",
        "/./livez",
        "/api/../livez",
        "/api/..%2flivez",
        "/api/%2e%2e/livez",
        "/livez?/api/",
        "/_problem",
        "/",
        "/api",
        "/api/",
        "/apis",
        "/.well-known/security.txt",
        "/.well-known/jwks.json/",
    ],
)
def test_only_the_api_is_published_and_nothing_is_redirected(nginx: Https, target: str) -> None:
    response = nginx.get(target)

    assert response.status == 404
    assert response.problem["type"] == "/problems/not-found"


@pytest.mark.parametrize("target", ["/livez/../api/session", "//api/session", "/api//session"])
def test_nginx_and_the_application_agree_on_the_path(nginx: Https, target: str) -> None:
    assert nginx.get(target).status == 404


FORGED = [
    *(f"X-Forwarded-{name}: forged" for name in ("For", "Host", "Port", "Proto", "Prefix", "Server", "Ssl")),
    *(f"X-Forwarded-{name}: forged" for name in ("Scheme", "Protocol", "By")),
    *(f"X-{name}: forged" for name in ("Real-IP", "Client-IP", "Scheme", "Url-Scheme", "Request-ID")),
    *(f"X-{name}: forged" for name in ("Original-URL", "Rewrite-URL", "HTTP-Method-Override", "Forwarded")),
    "Forwarded: for=forged;proto=http;host=forged",
    *(f"{name}: forged" for name in ("True-Client-IP", "Front-End-Https", "Proxy")),
    *(f"{name}: forged" for name in ("SCRIPT_NAME", "PATH_INFO", "Script-Name", "Path-Info")),
    *(
        f"{name}: forged"
        for name in ("X_Forwarded_For", "X_Forwarded_Proto", "X_FORWARDED_HOST", "REMOTE_ADDR")
    ),
    "Connection: X-Forwarded-For, X-Forwarded-Proto, Host",
]


@pytest.mark.requirement("K1")
def test_forged_proxy_headers_are_removed(another_nginx: StartNginx) -> None:
    with recording() as (port, received):
        another_nginx(port).get("/api/x?y", *FORGED, source="127.0.0.2")
    line, *headers = received[0].decode().splitlines()

    assert line == "GET /api/x?y HTTP/1.1"
    assert sorted(filter(None, headers)) == [
        f"Host: {Nginx.HOST}",
        "X-Forwarded-For: 127.0.0.2",
        "X-Forwarded-Proto: https",
        "X-Requested-With: test",
    ]


@contextmanager
def recording() -> Iterator[tuple[int, list[bytes]]]:
    """A server that records the requests it receives."""
    received: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with closing(connection):
                received.append(connection.recv(65_536))
                connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

        thread = Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], received
        thread.join()


@pytest.mark.requirement("K1")
def test_application_sees_https_despite_forged_headers(nginx: Https) -> None:
    def logout(origin: str) -> int:
        return nginx.raw(request("POST", "/api/logout", *FORGED, f"Origin: {origin}")).status

    # The API's own origin is allowed to write, and it is made of the scheme and host that the app sees.
    assert logout(f"https://{Nginx.HOST}") == 204
    assert logout(f"http://{Nginx.HOST}") == 403
    assert logout("https://forged") == 403


@pytest.mark.requirement("K1")
def test_application_sees_the_clients_address_despite_forged_headers(nginx: Https, api: Server) -> None:
    response = nginx.get("/api/session", *FORGED, source="127.0.0.3")

    wanted = response.headers["X-Request-ID"]
    lines = eventually(lambda: [json.loads(line) for line in api.log.splitlines() if wanted in line])
    assert {line["client"] for line in lines} == {"127.0.0.3"}


@pytest.mark.parametrize(
    "sent",
    [
        request("GET", "/api/session", host="evil.example"),
        request("GET", "/api/session", host="127.0.0.1"),
        request("GET", "/api/session", host=f"{Nginx.HOST}.evil.example"),
        request("GET", "/api/session", host=f"evil.{Nginx.HOST}"),
        request("GET", "https://evil.example/api/session"),
        b"GET /api/session HTTP/1.0\r\n\r\n",
    ],
    ids=["another", "address", "suffix", "subdomain", "absolute form", "none"],
)
@pytest.mark.requirement("K3")
def test_other_hosts_are_rejected(nginx: Https, sent: bytes) -> None:
    check_problem(nginx.raw(sent), 421, "malformed-request", instance="/api/session")


@pytest.mark.requirement("K3")
def test_application_receives_the_host_that_nginx_matched(nginx: Https) -> None:
    """The application serves one name only, so any other name is a 400."""
    target = f"https://{Nginx.HOST}/api/session"
    assert nginx.raw(request("GET", target, host="evil.example")).status == 200


@pytest.mark.requirement("K3")
@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1"])
def test_tls_connection_without_a_known_server_name_is_rejected(nginx: Https, name: str) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        nginx.get("/api/session", name=name)


LOGIN = request("POST", "/api/login", JSON, "Transfer-Encoding: chunked", body=chunked(b"{}"))


@pytest.mark.parametrize(
    "sent",
    [
        LOGIN.replace(b"Transfer-", b"Content-Length: 2\r\nTransfer-"),
        LOGIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        LOGIN.replace(b": chunked", b" : chunked"),
        LOGIN.replace(b": chunked", b": chunked\r\nTransfer-Encoding: chunked"),
        LOGIN.replace(b"X-Req", b"X: a\r\n b\r\nX-Req"),
        LOGIN.replace(b"X-Req", b"X: a\rY: b\r\nX-Req"),
        LOGIN.replace(b"X-Req", b"Host: evil.example\r\nX-Req"),
        LOGIN.replace(b"\r\n2\r\n", b"\r\nzz\r\n"),
        request("POST", "/api/login", JSON, "Content-Length: 2", "Content-Length: 3", body=b"{}"),
        request("POST", "/api/login", JSON, "Content-Length: -1"),
        request("POST", "/api/login", JSON, "Content-Length: +2").replace(b"+2", b"+2\r\n"),
    ],
    ids=[
        "CL and TE",
        "TE in HTTP/1.0",
        "space before the colon",
        "two TE",
        "obs-fold",
        "bare CR",
        "two Hosts",
        "broken chunk",
        "two CL",
        "negative CL",
        "signed CL",
    ],
)
@pytest.mark.requirement("K4")
def test_ambiguous_framing_is_a_400_and_ends_the_connection(nginx: Https, sent: bytes) -> None:
    sent = sent.replace(b"Connection: close\r\n", b"")
    with nginx.connection() as connection:
        response = exchange(connection, sent)
        assert connection.recv(1) == b""

    assert response.status == 400
    assert response.problem["type"] == "/problems/malformed-request"


MALFORMED = {
    "callback": request("GET", CALLBACK, f"Referer: https://app.example.com{CALLBACK}"),
    "encoded": request("GET", CALLBACK.replace("?", "%3F")),
    "version": f"GET {CALLBACK} HTTP/9.9\r\nHost: x\r\n\r\n".encode(),
    "method": request("get", CALLBACK),
    "no path": request("GET", CALLBACK.removeprefix("/")),
    "header": request("GET", CALLBACK, f"X {CODE}: y"),
    "host": request("GET", CALLBACK, host=f"{CODE}.example"),
    "two hosts": request("GET", CALLBACK, "Host: x"),
    "line": request("GET", f"{CALLBACK}{'x' * 4096}"),
    "longer line": request("GET", f"{CALLBACK}{'x' * 9000}"),
    "long header": request("GET", CALLBACK, f"Cookie: {CODE}{'x' * 9000}"),
    "body": request("POST", CALLBACK, JSON, body=TOO_BIG),
    "elsewhere": request("GET", f"/livez?code={CODE}"),
    "control character": request("GET", CALLBACK, f"X: {CODE}\x01"),
}


@pytest.mark.requirement("D11")
@pytest.mark.parametrize("case", MALFORMED)
def test_logs_contain_neither_codes_nor_states(nginx: Https, api: Server, case: str) -> None:
    response = nginx.raw(MALFORMED[case])

    logged(nginx, response)
    assert 400 <= response.status < 500 or response.status == 505
    assert response.headers["Content-Type"] == "application/problem+json"
    assert CODE not in nginx.nginx.log + api.log
    assert case == "encoded" or CODE not in str(response.headers) + response.body.decode()


@pytest.mark.requirement("D11")
def test_logs_contain_no_code_from_an_http_0_9_request(nginx: Https) -> None:
    before = len(nginx.nginx.lines)
    with nginx.connection() as connection:
        connection.sendall(f"GET {CALLBACK}\r\n".encode())
        assert connection.makefile("rb").read().startswith(b'{"type": "/problems/malformed-request"')

    eventually(lambda: len(nginx.nginx.lines) > before)
    assert CODE not in nginx.nginx.log


@pytest.mark.requirement("D11")
def test_logs_contain_no_code_when_nginx_responds_itself(another_nginx: StartNginx) -> None:
    without_app = another_nginx(free_port())

    logged(without_app, without_app.get(CALLBACK))
    logged(without_app, send_plain(without_app.nginx.port, request("GET", CALLBACK)))

    assert CODE not in without_app.nginx.log


@pytest.mark.requirement("J2")
def test_nginx_log_has_the_request_id_of_the_application(nginx: Https, api: Server) -> None:
    response = nginx.get("/api/session?x=y", source="127.0.0.2")
    line = logged(nginx, response)

    assert (line["method"], line["path"], line["status"]) == ("GET", "/api/session", 200)
    assert (line["address"], line["upstream_status"]) == ("127.0.0.2", "200")
    assert eventually(lambda: str(line["request_id"]) in api.log)

    rejected = logged(nginx, nginx.raw(request("DELETE", "/readyz")))
    assert (rejected["method"], rejected["path"], rejected["status"]) == ("DELETE", "/readyz", 404)


def test_client_that_is_too_slow_is_disconnected(another_nginx: StartNginx) -> None:
    impatient = another_nginx(
        free_port(),
        {
            "client_header_timeout 10s": "client_header_timeout 200ms",
            "client_body_timeout 10s": "client_body_timeout 200ms",
        },
    )
    for sent in (b"GET /api/session HTTP/1.1\r\n", request("POST", "/api/login", body=b"{}")[:-1]):
        # A reset is how reset_timedout_connection ends it, which may be during the handshake.
        with suppress(ConnectionError, ssl.SSLError), impatient.connection() as connection:
            connection.sendall(sent)
            assert connection.recv(1) == b""
