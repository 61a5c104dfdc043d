"""The settings that gunicorn's arbiter has read, for its workers.

A worker that replaces another must not read `.env` itself: that may be invalid by then, and a worker that
cannot start ends gunicorn.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Config

_kept: list["Config"] = []


def keep(config: "Config") -> None:
    """Keep these settings for processes that are forked from this one."""
    _kept[:] = [config]


def kept() -> "Config | None":
    """Return what an ancestor has kept, if anything."""
    return _kept[0] if _kept else None
