"""Hosts, URLs, and origins in settings."""

import ipaddress
import re
from urllib.parse import urlsplit

# The schemes of pages in a native shell and of browser extensions.
APP_SCHEMES = ("capacitor", "ionic", "tauri", "chrome-extension", "moz-extension")


def is_loopback(host: str | None) -> bool:
    """Return whether a URL's host can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_browsers_machine(host: str | None) -> bool:
    """Return whether a browser looks for a host on its own machine, as for names under `.localhost`."""
    return is_loopback(host) or (host or "").endswith(".localhost")


def is_host(name: str | None) -> bool:
    """Return whether a name could be looked up: `mail..example.com` could not."""
    try:
        return bool(name) and set(" ,;").isdisjoint(name or "") and bool((name or "").encode("idna"))
    except UnicodeError:
        return False


def host_name(entry: str) -> str:
    """Return the name in an entry of TRUSTED_HOSTS, without its port."""
    return entry.partition(":")[0]


def origin_of(url: str) -> str:
    """Return a URL's origin as browsers send it: in lower case, without the scheme's default port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    try:
        port = "" if parts.port in (None, default) else f":{parts.port}"
    except ValueError:  # above 65535
        port = ""
    return f"{parts.scheme}://{host}{port}"


def is_exact_origin(origin: str) -> bool:
    """Return whether an entry of CORS_ORIGINS is one origin, written as browsers send it."""
    schemes = "|".join(("https?", *APP_SCHEMES))
    shape = re.fullmatch(rf"(?:{schemes})://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{{1,5}})?", origin)
    return shape is not None and origin == origin_of(origin)


def is_app_origin(origin: str) -> bool:
    """Return whether an origin is that of an app in a native shell, or of a browser extension.

    To browsers, these are on another site than any API. But some of their requests do not follow the rules
    for cookies: extensions can have permissions for hosts, and shells can bypass the web view.
    """
    parts = urlsplit(origin)
    return parts.scheme in APP_SCHEMES or f".{parts.netloc}".endswith(".localhost")


def may_be_same_site(one: str, other: str) -> bool:
    """Return whether browsers may consider two URLs the same site: same scheme, and similar domain names.

    Browsers decide by a list of public suffixes such as `co.uk`. Without it, names that share their last two
    labels pass.
    """
    first, second = urlsplit(one), urlsplit(other)
    if first.scheme != second.scheme:
        return False
    hosts = [url.hostname or "" for url in (first, second)]
    if any(re.fullmatch(r"[0-9.]+|.*:.*", host) for host in hosts):  # an IP address is a site by itself
        return hosts[0] == hosts[1]
    return hosts[0].split(".")[-2:] == hosts[1].split(".")[-2:]
