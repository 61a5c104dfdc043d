"""Requests that no person made: what browsers fetch before a click, and previews of links."""

from flask import request

from app.errors import ServiceUnavailable

# Headers with which current and older browsers mark prefetches and previews.
_PURPOSE_HEADERS = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")


class PreviewRejected(ServiceUnavailable):
    """The request is a prefetch, or a HEAD with a callback. Browsers discard a prefetch with this status."""

    detail = "A prefetch or HEAD request cannot start or complete an authorization. Send a GET request."


def reject_preview(*, is_callback: bool) -> None:
    """Prevent a request that no person made from starting or completing an authorization.

    Browsers mark what they fetch before a click (https://wicg.github.io/nav-speculation/prefetch.html).

    Raises:
        PreviewRejected: The request is a prefetch or preview, or a HEAD with a callback.
    """
    purposes = " ".join(request.headers.get(name, "") for name in _PURPOSE_HEADERS).lower()
    if "prefetch" in purposes or "preview" in purposes or (request.method == "HEAD" and is_callback):
        raise PreviewRejected
