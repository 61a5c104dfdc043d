"""Links to the Web API in its responses, written for the base URL at which a caller uses the gateway.

Libraries follow links such as `next`, and some send their token with the request. So that it comes back here,
the gateway replaces the start of each link. ETags get a suffix, because the response differs by base URL.
"""

import hashlib
import json
import re
from functools import lru_cache
from urllib.parse import urljoin

# RFC 9110 section 8.8.3
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
# Longer lists are cut, so that a header cannot grow without limit in calls and cache keys.
MAX_ETAGS = 8


class Links:
    """Rewrites links that start with `api_url` to start with `base_url`. Neither ends with a slash."""

    def __init__(self, api_url: str, base_url: str) -> None:
        self._api, self._base = f"{api_url}/", f"{base_url}/"
        old, new = (f'"{json.dumps(url)[1:-1]}'.encode() for url in (self._api, self._base))
        # JSON may have a backslash before each slash.
        self._starts = [(old, new), (old.replace(b"/", b"\\/"), new.replace(b"/", b"\\/"))]
        self._suffix = f';{hashlib.sha256(self._base.encode()).hexdigest()[:8]}"'

    def rewrite(self, body: bytes) -> bytes:
        """Rewrite the strings of a JSON body. Without links, returns the same object.

        A quote inside a string always follows a backslash, and one that starts a string never does.
        """
        for old, new in self._starts:
            if old in body:
                quoted = b"\\" + old
                body = quoted.join([part.replace(old, new) for part in body.split(quoted)])
        return body

    def rewrite_location(self, location: str, path: str) -> str:
        """Rewrite a Location header in the response to a call to `path`, if it is of the Web API."""
        try:
            target = urljoin(f"{self._api}{path}", location)
        except ValueError:  # an unclosed bracket
            return location
        return self._base + target.removeprefix(self._api) if target.startswith(self._api) else location

    def from_spotify(self, etag: str) -> str:
        """Return the ETag for our response; an empty string if it is invalid."""
        return etag[:-1] + self._suffix if _ETAG.fullmatch(etag) else ""

    def to_spotify(self, if_none_match: str) -> str:
        """Return an If-None-Match header with Spotify's ETags (RFC 9110 section 13.1.2).

        ETags of responses with another base URL are omitted, so the caller gets the whole response.
        """
        if if_none_match.strip() == "*":
            return "*"
        etags = _ETAG.findall(if_none_match[:1024])
        ours = [f'{etag.removesuffix(self._suffix)}"' for etag in etags if etag.endswith(self._suffix)]
        return ", ".join(ours[:MAX_ETAGS])


@lru_cache(maxsize=64)
def links_between(api_url: str, base_url: str) -> Links:
    """Return the `Links` between these URLs, which are the same for most requests."""
    return Links(api_url, base_url)
