"""The WSGI application: logs each call, applies faults, and runs views one at a time."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from sandbox import fault_responses
from sandbox.api import api
from sandbox.application_control import application_control
from sandbox.applications import Application
from sandbox.authorize import accounts
from sandbox.calls import describe_call, is_journaled
from sandbox.clock import as_text
from sandbox.context import sandbox
from sandbox.control import control
from sandbox.dashboard import dashboard
from sandbox.faults import HOLDING, Fault
from sandbox.index import index
from sandbox.state import Sandbox
from sandbox.token import token

# Enough for a playlist cover.
MAX_BODY_BYTES = 1024 * 1024
# No response reaches the caller, so the journal has no status.
_UNANSWERED = ("close", "timeout")


class SandboxApp(Flask):
    """Flask, with views serialized so that they need no locks."""

    def dispatch_request(self) -> ResponseReturnValue:
        """Run the view while holding the sandbox's lock."""
        with sandbox().lock:
            return super().dispatch_request()


def create_app(first: Application) -> Flask:
    """Build a sandbox that knows one application, until others are created."""
    app = SandboxApp(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["sandbox"] = Sandbox(first)
    for blueprint in (accounts, token, api, control, application_control, dashboard, index):
        # Only api.spotify.com accepts a trailing slash.
        app.url_map.strict_slashes = blueprint is not api
        app.register_blueprint(blueprint)
    app.before_request(_start_call)
    app.after_request(_finish_call)
    app.register_error_handler(HTTPException, _plain_error)
    return app


def _start_call() -> Response | None:
    """Record the call, then let a fault respond in place of the view if one is due."""
    g.fault = None
    if not is_journaled(request.path):
        return None
    state = sandbox()
    with state.lock:
        g.call = state.journal.open(describe_call(state, request), as_text(state.clock.now()))
        g.fault = fault = state.faults.take(g.call)
        outage = state.settings.outage
        latency_ms = state.settings.latency_ms["api" if request.path.startswith("/v1") else "token"]
    g.call.fault = fault.kind if fault else None
    if latency_ms and request.path.startswith(("/v1", "/api/token")):
        time.sleep(latency_ms / 1000)
    if outage:
        g.fault = None
        return fault_responses.outage()
    return _hold_call(fault, None) if fault and not fault.after_effect else None


def _finish_call(response: Response) -> Response:
    """Apply the fault to the response if one is due, and record the outcome."""
    if "call" not in g:
        return response
    fault: Fault | None = g.fault
    if fault and fault.after_effect:
        response = _hold_call(fault, response) or response
    unanswered = fault is not None and fault.kind in _UNANSWERED
    state = sandbox()
    status = None if unanswered else response.status_code
    state.journal.close(g.call, status, as_text(state.clock.now()))
    return response


def _hold_call(fault: Fault, normal: Response | None) -> Response | None:
    """Hold the call if the fault says so. Returns None if the call then proceeds normally."""
    if fault.kind in HOLDING:
        sandbox().faults.hold(fault)
    return None if fault.kind in ("park", "slow") else fault_responses.faulty_response(fault, normal)


def _plain_error(error: HTTPException) -> tuple[dict[str, object], int]:
    return {"message": f"{error.code} {error.name}"}, error.code or 500
