"""The API's paths, for code that runs before, or without, routing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Where the Web API is, followed by Spotify's own paths.
GATEWAY = ("/api/spotify/v1", "/v1")


def is_api(environ: "WSGIEnvironment") -> bool:
    """Return whether a request is for the API, rather than for operators."""
    return _path(environ).startswith(("/api/", "/v1/"))


def is_gateway(environ: "WSGIEnvironment") -> bool:
    """Return whether a request is for the Web API."""
    return f"{_path(environ)}/".startswith(tuple(f"{path}/" for path in GATEWAY))


def _path(environ: "WSGIEnvironment") -> str:
    return "/" + str(environ.get("PATH_INFO", "")).lstrip("/")
