"""tekore's client, for a Backline server."""

from __future__ import annotations

from typing import Any

import httpx
import tekore  # type: ignore[import-untyped, import-not-found, unused-ignore]


class Client(tekore.Spotify):  # type: ignore[misc, unused-ignore]
    """A client that sends its calls to the server."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        if options.get("sender") is None:
            options["sender"] = _sender(asynchronous=options.get("asynchronous") or False)
        super().__init__(token, **options)
        self._base_url = f"{url}/v1/"

    def send(self, request: tekore.Request) -> Any:
        """Send a request. Paths are relative to the Web API; the links in responses are absolute."""
        if not request.url.startswith("http"):
            request.url = self._base_url + request.url
        return super().send(request)


def _sender(*, asynchronous: bool) -> tekore.Sender:
    timeout = 30
    if asynchronous:
        return tekore.AsyncSender(httpx.AsyncClient(timeout=timeout))
    return tekore.SyncSender(httpx.Client(timeout=timeout))
