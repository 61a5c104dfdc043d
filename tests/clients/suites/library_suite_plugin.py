"""Sends the calls of another project's test suite to BASE_URL, with TOKEN instead of any token of Spotify's.

A pytest plugin: the suite runs in its own folder, which has another package `tests`.
"""

import os
from typing import Any

import httpx
import requests

BASE_URL, TOKEN, ACCOUNTS_URL = (os.environ[name] for name in ("BASE_URL", "TOKEN", "ACCOUNTS_URL"))
# How access tokens of the sandbox begin. Others, such as "invalid", are sent unchanged.
_SPOTIFY_TOKEN = "Bearer BQ"


def _map(url: str) -> str:
    mapped = url.replace("https://api.spotify.com/v1", BASE_URL)
    return mapped.replace("https://accounts.spotify.com", ACCOUNTS_URL)


def _map_httpx(request: httpx.Request) -> None:
    request.url = httpx.URL(_map(str(request.url)))
    request.headers["Host"] = request.url.netloc.decode()
    if request.headers.get("Authorization", "").startswith(_SPOTIFY_TOKEN):
        request.headers["Authorization"] = f"Bearer {TOKEN}"


def _patch_requests() -> None:
    send = requests.adapters.HTTPAdapter.send

    def mapped(self: Any, request: Any, **options: Any) -> Any:
        request.url = _map(request.url)
        if request.headers.get("Authorization", "").startswith(_SPOTIFY_TOKEN):
            request.headers["Authorization"] = f"Bearer {TOKEN}"
        return send(self, request, **{**options, "proxies": {}})

    requests.adapters.HTTPAdapter.send = mapped  # type: ignore[method-assign, assignment]


def _patch_httpx() -> None:
    handle, handle_async = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request

    def mapped(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        _map_httpx(request)
        return handle(self, request)

    async def mapped_async(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        _map_httpx(request)
        return await handle_async(self, request)

    httpx.HTTPTransport.handle_request = mapped  # type: ignore[method-assign]
    httpx.AsyncHTTPTransport.handle_async_request = mapped_async  # type: ignore[method-assign]


def _patch_spotipy() -> None:
    """Give the suite the token that it would ask a person for."""
    import spotipy

    spotipy.prompt_for_user_token = lambda *_, **__: TOKEN


_patch_requests()
_patch_httpx()
if os.environ["SUITE"] == "spotipy":
    _patch_spotipy()
