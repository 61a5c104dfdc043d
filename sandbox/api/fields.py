"""The parameter `fields`: `name,items(added_at,item.name)` or, to leave members out, `!images`."""

from __future__ import annotations

import re
from typing import Any

from flask import request

# The members to keep, with what to keep of each; None keeps all of it.
Selection = dict[str, "Selection | None"]


def requested_fields(value: dict[str, Any]) -> Any:
    """Return the parts of the object that the query asks for: without `fields`, all of it."""
    text = request.args.get("fields")
    return _select(value, _parse(re.findall(r"[(),]|[^(),\s]+", text))) if text else value


def _parse(tokens: list[str]) -> Selection:
    """Consume tokens up to the end or an unmatched `)`."""
    selection: Selection = {}
    while tokens and (part := tokens.pop(0)) != ")":
        if part in "(,":
            continue
        *path, last = part.split(".")
        node = selection
        for name in path:
            child = node.get(name) or {}
            node[name] = child
            node = child
        node[last] = None
        if tokens[:1] == ["("]:
            del tokens[0]
            node[last] = _parse(tokens)
    return selection


def _select(value: Any, selection: Selection | None) -> Any:
    if selection is None:
        return value
    if isinstance(value, list):
        return [_select(entry, selection) for entry in value]
    if not isinstance(value, dict):
        return value
    left_out = [name[1:] for name in selection if name.startswith("!")]
    if left_out:
        return {name: member for name, member in value.items() if name not in left_out}
    return {name: _select(member, selection[name]) for name, member in value.items() if name in selection}
