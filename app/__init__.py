"""Backline: the backend for a single-page app on Spotify. `create_app` builds the application."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from config import Config


def create_app(config: "Config") -> "Flask":
    """Build the application. Opens no connection."""
    from app import factory  # not earlier: it imports `config`, which imports `app.settings`

    return factory.create_app(config)
