"""httplint, the linter in REDbot, on the responses of every route as nginx sends them."""

import json
import time
from typing import Any

import pytest
from httplint import HttpRequestLinter, HttpResponseLinter, levels

from tests.helpers.raw_http import ORIGIN, Https, RawResponse, request
from tests.helpers.servers import Nginx

pytestmark = pytest.mark.processes

# Not in the OpenAPI document.
OTHERS = [
    ("GET", "/api/docs"),
    ("GET", "/api/docs/start.js"),
    ("GET", "/api/docs/swagger-ui.css"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/nothing"),
    ("HEAD", "/api/session"),
    ("OPTIONS", "/api/session"),
    ("TRACE", "/api/session"),
    ("DELETE", "/api/session"),
]


def notes(method: str, target: str, headers: list[str], response: RawResponse) -> set[str]:
    """Return what httplint finds wrong with a response."""
    uri = f"https://{Nginx.HOST}{target}"
    sent = HttpRequestLinter()
    sent.process_request_topline(method.encode(), uri.encode(), b"HTTP/1.1")
    sent.process_headers([(b"Host", Nginx.HOST.encode()), *(pair(*line.split(": ", 1)) for line in headers)])
    sent.finish_content(True)
    received = HttpResponseLinter(start_time=time.time(), _related=sent, no_content=method == "HEAD")
    received.base_uri = uri
    received.process_response_topline(b"HTTP/1.1", str(response.status).encode(), b"")
    received.process_headers([pair(*header) for header in response.headers.items()])
    received.feed_content(response.body)
    received.finish_content(True)
    return {
        f"{note.summary} ({type(note).__name__})"
        for note in received.notes
        # A status such as 400 is what the test wants, and no reason phrase is parsed.
        if note.level in (levels.WARN, levels.BAD) and not type(note).__name__.startswith("STATUS_")
    }


def pair(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode()


def test_responses_of_all_routes_pass(nginx: Https) -> None:
    document: dict[str, Any] = json.loads(nginx.get("/api/openapi.json", source="127.0.0.9").body)
    documented = [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    ]
    assert len(documented) > 30
    found = {}
    for method, target in [*documented, *OTHERS]:
        body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
        headers = [f"Origin: {ORIGIN}", *(["Content-Type: application/json"] if body else [])]
        response = nginx.raw(request(method, target, *headers, body=body), source="127.0.0.9")
        found[f"{method} {target} {response.status}"] = notes(method, target, headers, response)
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_linter_sees_a_wrong_header(nginx: Https) -> None:
    response = nginx.get("/api/session", source="127.0.0.9")
    response.headers.replace_header("Strict-Transport-Security", "max-age=soon")
    assert notes("GET", "/api/session", [], response) != set()
