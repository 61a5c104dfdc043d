"""Copies figures from benchmarks/results/after.json into the tables of documents.

Run it as `.venv/bin/python -m benchmarks.document`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import tiers
from benchmarks.results import RESULTS, shown
from tests.helpers.servers import ROOT

DOCUMENTS = tuple(ROOT / "docs" / f"{name}.md" for name in ("performance", "sizing", "scaling"))
RESULT = RESULTS / "after.json"
MET = {True: "yes", False: "**no**", None: ""}
_TABLE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Figures = dict[str, list[dict[str, Any]]]


def update(text: str, parts: Figures) -> str:
    """Return the document with new tables between its comments `<!-- routes -->` and `<!-- end -->`."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{_markdown(TABLES[match[2]](parts))}\n{match[3]}"

    return _TABLE.sub(table, text)


def read() -> Figures:
    """Return the figures of each part."""
    parts = json.loads(RESULT.read_text(encoding="utf-8"))["parts"]
    return {name: part["figures"] for name, part in parts.items()}


def _routes(parts: Figures) -> Iterable[Sequence[str]]:
    found = {figure["name"]: figure for figure in parts["routes"]}
    yield "", "x bare", "target", "met", "before, x bare", "CPU ms", "requests/s", "p50 ms", "p99 ms"
    for name, figure in found.items():
        if not name.startswith("before: "):
            before = found.get(f"before: {name}")
            more = [shown(value) for value in figure["more"].values()]
            yield name, *_value(figure), shown(before["value"]) if before else "", *more


def _alternatives(parts: Figures) -> Iterable[Sequence[str]]:
    yield "", "requests per CPU second", "ours are", "target", "met"
    for figure in parts["alternatives"]:
        ours, _, name = figure["name"].partition(" compared with ")
        rate = shown(figure["more"]["requests/CPU s"])
        if name:
            yield name, rate, f"{shown(figure['value'])} x ({ours})", figure["target"], MET[figure["met"]]
        else:
            yield f"Backline {ours}", rate, "", "", ""


def _with_columns(part: str, value: str) -> Callable[[Figures], Iterable[Sequence[str]]]:
    """Return a function that lists the figures of a part with their further columns."""

    def rows(parts: Figures) -> Iterable[Sequence[str]]:
        names = list(parts[part][0]["more"])
        yield "", value, *names
        for figure in parts[part]:
            more = [shown(figure["more"].get(name, "")) for name in names]
            yield figure["name"], f"{shown(figure['value'])} {figure['unit']}", *more

    return rows


def _parts(*names: str) -> Callable[[Figures], Iterable[Sequence[str]]]:
    """Return a function that lists all figures of some parts."""

    def rows(parts: Figures) -> Iterable[Sequence[str]]:
        yield "", "", "measured", "target", "met"
        for name in names:
            for figure in parts[name]:
                yield f"`{name}`", figure["name"], *_value(figure)

    return rows


def _value(figure: dict[str, Any]) -> Sequence[str]:
    return f"{shown(figure['value'])} {figure['unit']}".strip(), figure["target"], MET[figure["met"]]


TABLES: dict[str, Callable[[Figures], Iterable[Sequence[str]]]] = {
    "routes": _routes,
    "alternatives": _alternatives,
    "engine": _parts("engine", "memory", "due"),
    "latency": _parts("miss", "tail"),
    "slowness": _parts("hang", "outage", "slow", "tabs", "burst"),
    "startup": _parts("startup"),
    "storage": _parts("storage"),
    "tiers": tiers.rows,
    "pruning": _with_columns("pruning", "pruned"),
    "fleet": _with_columns("fleet", "peak"),
}


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(update(document.read_text(encoding="utf-8"), read()), encoding="utf-8")
