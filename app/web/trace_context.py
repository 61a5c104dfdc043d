"""The trace that a request belongs to, for the log and for calls to Spotify.

This connects them with the client's own traces. Spans are left to OpenTelemetry (docs/monitoring.md).

Source: https://www.w3.org/TR/trace-context/
"""

import random
import re
from typing import TYPE_CHECKING, NamedTuple

from flask import has_request_context
from flask.globals import request_ctx

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Version, trace-id, parent-id, and trace-flags. Ids of zeros are invalid, and so is version ff.
_TRACEPARENT = re.compile(
    r"((?!ff)[0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})"
)
# `sampled` and `random-trace-id`. The others have no meaning yet, and must not be passed on.
_KNOWN_FLAGS = 0b11


class Trace(NamedTuple):
    """A valid `traceparent`: a trace, and the span in it that sent the request."""

    trace_id: str
    parent_id: str
    flags: int


def trace_of(environ: "WSGIEnvironment") -> Trace | None:
    """Return the trace that a request belongs to, if its `traceparent` is valid."""
    header: str | None = environ.get("HTTP_TRACEPARENT")
    found = _TRACEPARENT.match(header) if header is not None else None
    if header is None or found is None:
        return None
    version, trace_id, parent_id, flags = found.groups()
    rest = header[found.end() :]
    if rest and (version == "00" or not rest.startswith("-")):  # later versions may append fields
        return None
    return Trace(trace_id, parent_id, int(flags, 16))


def outgoing() -> str | None:
    """Return a `traceparent` header for an outgoing call, with a new span id.

    Returns None outside of requests, and for requests without a trace.
    """
    trace = trace_of(request_ctx.request.environ) if has_request_context() else None
    if trace is None:
        return None
    span_id = random.getrandbits(64) or 1
    return f"00-{trace.trace_id}-{span_id:016x}-{trace.flags & _KNOWN_FLAGS:02x}"
