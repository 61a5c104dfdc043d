"""Flask, without what this application does not use."""

from collections.abc import Callable
from typing import Any

from flask import Flask


class SyncFlask(Flask):
    """A Flask application without coroutines."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function. Flask would inspect each view and hook in every request."""
        return func
