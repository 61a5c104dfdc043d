"""The settings that gunicorn's arbiter has read, for its workers.

A worker that replaces another must not read `.env` itself: that may be invalid by then, and a worker that
cannot start ends gunicorn.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Config

_inherited: "Config | None" = None


def pass_to_workers(config: "Config") -> None:
    """Let processes that are forked from this one inherit these settings."""
    global _inherited  # noqa: PLW0603
    _inherited = config


def inherited_config() -> "Config | None":
    """Return the settings that an ancestor has passed on, if any."""
    return _inherited
