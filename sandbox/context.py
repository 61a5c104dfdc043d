"""Access to the current app's sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    from sandbox.state import Sandbox


def sandbox() -> Sandbox:
    """Return the state of the current app's sandbox."""
    return cast("Sandbox", current_app.extensions["sandbox"])
