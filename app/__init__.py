"""Backline: the backend for a single-page app on Spotify. `create_app` builds the application."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from config import Config


def create_app(config: "Config") -> "Flask":
    """Build the application. Opens no connection."""
    # Not at the top: `factory` imports `config`, which imports `app.settings`, and so this module. Also,
    # gunicorn's arbiter imports `config`, and must not import the application (see deploy/worker.py).
    from app import factory

    return factory.create_app(config)
