"""Checks Set-Cookie headers against RFC 6265bis (draft, section 4.1) and our own rules."""

import re

NAME = r"__Host-Http-session|__Host-session|backline_session"
VALUE = r"[\w-]{43}|"  # empty in a deletion
LINE = re.compile(rf"({NAME})=({VALUE})((?:; [\w-]+(?:=[^;]*)?)*)", re.ASCII)


def check(line: str) -> None:
    """Fail unless Backline may send this Set-Cookie, to start a session or to end it."""
    match = LINE.fullmatch(line)
    assert match, line
    name, value, rest = match.groups()
    found = [part.strip().partition("=")[::2] for part in rest.split(";")[1:]]
    attributes = dict(found)
    assert len(attributes) == len(found), f"an attribute is repeated: {line}"
    assert len(line) < 4096
    assert attributes.keys() <= {
        "Expires",
        "Max-Age",
        "Secure",
        "HttpOnly",
        "Path",
        "SameSite",
        "Partitioned",
    }
    assert "HttpOnly" in attributes, line
    assert attributes["Path"] == "/", line
    assert attributes.get("SameSite") in ("Lax", "None", "Strict"), line
    assert (attributes["Max-Age"] == "0") == (value == ""), line
    assert name != "__Host-session" or value == "", f"the old name is only deleted: {line}"
    assert ("Secure" in attributes) == name.startswith("__Host-"), line
    assert ("Partitioned" in attributes) == (attributes["SameSite"] == "None"), line
    assert attributes["SameSite"] != "None" or "Secure" in attributes, line
