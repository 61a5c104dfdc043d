"""Problems in Spotify's own format, which libraries for the Web API read."""

from typing import Any

# Spotify's words for the same errors, which scripts look for.
_SPOTIFY_MESSAGES = {
    "/problems/insufficient-scope": "Insufficient client scope",
    "/problems/invalid-bearer-token": "Missing/invalid/expired access token",
    "/problems/spotify-rate-limited": "API rate limit exceeded",
}


def spotify_error(document: dict[str, Any]) -> dict[str, Any]:
    """Return the error of a problem document in Spotify's format, for the gateway's member `error`.

    There is no `reason`, because tekore fails if it does not know one.
    """
    message = _SPOTIFY_MESSAGES.get(document["type"], document["detail"])
    return {"status": document["status"], "message": message}
