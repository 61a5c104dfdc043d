"""The OpenAPI document, as a file that clients can cache."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.web import openapi

pytestmark = pytest.mark.sqlite_only

DOCUMENT = "/api/openapi.json"


def test_document_is_built_once_for_all_requests(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    built, complete, is_second = [], openapi.complete, threading.Event()

    def counted(*arguments: Any, **options: Any) -> dict[str, Any]:
        built.append(1)
        if len(built) == 1:
            is_second.wait(0.3)  # for as long as another request would need to get here
        else:
            is_second.set()
        return complete(*arguments, **options)

    monkeypatch.setattr(openapi, "complete", counted)

    with ThreadPoolExecutor(8) as pool:
        bodies = set(pool.map(lambda _: app.test_client().get(DOCUMENT).data, range(16)))

    assert len(built) == 1
    [body] = bodies
    assert json.loads(body)["info"]["title"] == "Backline"


def test_document_has_a_strong_etag_and_is_not_sent_again(client: FlaskClient) -> None:
    first = client.get(DOCUMENT)
    tag, is_weak = first.get_etag()
    assert tag is not None
    assert not is_weak
    assert first.headers["Cache-Control"] == "no-cache"

    again = client.get(DOCUMENT, headers={"If-None-Match": f'"{tag}"'})
    other = client.get(DOCUMENT, headers={"If-None-Match": '"other"'})

    assert (again.status_code, again.data, again.get_etag()) == (304, b"", (tag, False))
    assert (other.status_code, other.data) == (200, first.data)
    for response in (first, again):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Origin" in response.vary


@pytest.mark.parametrize("condition", ["If-Match", "If-Unmodified-Since", "Range"])
def test_other_conditions_do_not_make_the_document_an_error(client: FlaskClient, condition: str) -> None:
    response = client.get(DOCUMENT, headers={condition: '"other"'})

    assert (response.status_code, response.json["openapi"][:2]) == (200, "3.")


def test_unchanged_document_has_no_length(client: FlaskClient) -> None:
    tag, _ = client.get(DOCUMENT).get_etag()

    response = client.head(DOCUMENT, headers={"If-None-Match": f'W/"{tag}"'})

    assert response.status_code == 304
    assert not {"Content-Type", "Content-Length"} & set(response.headers.keys())
