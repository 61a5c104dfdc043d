"""Responses whose JSON has been encoded are the same as Werkzeug's."""

from itertools import product
from typing import Any

import pytest
from flask import Request, Response
from werkzeug.test import EnvironBuilder, run_wsgi_app

from app.web.api import EncodedResponse, json_response, read_body

BODY = b'{"a":1}'


def add_location(response: Response) -> None:
    response.headers["Location"] = "/elsewhere?q=ä"


def make_not_modified(response: Response) -> None:
    response.status_code = 304


def make_empty(response: Response) -> None:
    response.status_code = 204


def replace_body(response: Response) -> None:
    response.set_data("ü")
    response.headers["Vary"] = "Cookie"


def leave(_response: Response) -> None:
    pass


def test_response_is_the_same_as_werkzeugs() -> None:
    changes = (leave, add_location, make_not_modified, make_empty, replace_body)
    for change, method in product(changes, ("GET", "HEAD", "POST")):
        sent = []
        for kind in (EncodedResponse, Response):
            response = kind(BODY, content_type="application/json")
            change(response)
            environ = EnvironBuilder("/page", method=method).get_environ()
            body, status, headers = run_wsgi_app(response, environ)
            sent.append((b"".join(body), status, sorted(headers)))
        assert sent[0] == sent[1], (change, method)


def test_usual_response_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Response, "get_wsgi_headers", copy)

    body, *_ = run_wsgi_app(json_response(BODY), EnvironBuilder().get_environ())
    assert b"".join(body) == BODY


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        ({"Content-Length": "0"}, b""),
        ({"Content-Length": "3"}, b"abc"),
        ({"Transfer-Encoding": "chunked"}, b"abc"),
    ],
    ids=["none", "empty", "length", "chunked"],
)
def test_body_is_read_if_there_is_one(headers: dict[str, str], body: bytes) -> None:
    environ = EnvironBuilder(method="POST", data=b"abc", environ_overrides={"wsgi.input_terminated": True})
    request = Request(environ.get_environ())
    del request.environ["CONTENT_LENGTH"]
    request.environ.update({to_environ(name): value for name, value in headers.items()})

    assert read_body(request, 3) == body


def to_environ(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key == "CONTENT_LENGTH" else f"HTTP_{key}"
