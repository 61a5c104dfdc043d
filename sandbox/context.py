"""How views find the sandbox they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    from sandbox.state import Sandbox


def sandbox() -> Sandbox:
    return cast("Sandbox", current_app.extensions["sandbox"])
