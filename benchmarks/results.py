"""Figures with their targets: as a Markdown table, and as JSON."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import version
from tests.helpers.servers import ROOT

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Figure:
    """A measured value, its target if it has one, and further columns of the table."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    more: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The target in words, or ""."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None


@dataclass(frozen=True)
class Section:
    """The results of one part of the benchmark."""

    title: str
    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    raw: Mapping[str, object] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return a heading, a table, and the notes."""
        columns = list(dict.fromkeys(name for figure in self.figures for name in figure.more))
        rows = [["", "value", "target", "met", *columns]]
        for figure in self.figures:
            met = {True: "yes", False: "**no**", None: ""}[figure.met]
            more = [shown(figure.more.get(name, "")) for name in columns]
            rows.append(
                [figure.name, f"{shown(figure.value)} {figure.unit}".strip(), figure.target, met, *more]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        rows.insert(1, ["-" * width for width in widths])
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"{note}  " for note in self.notes), ""])

    def json(self) -> dict[str, object]:
        """Return everything that was measured."""
        figures = [
            {**dataclasses.asdict(figure), "target": figure.target, "met": figure.met}
            for figure in self.figures
        ]
        return {"title": self.title, "figures": figures, "notes": list(self.notes), "raw": dict(self.raw)}


def shown(value: float | str) -> str:
    """Return a number with three significant digits, or four and more before the decimal point."""
    if isinstance(value, str):
        return value
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 0.1 else 4}f}"


def machine() -> dict[str, object]:
    """Describe the machine and the versions of what runs on it."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": cpus[0].partition(": ")[2] if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": sys.version.partition(" ")[0],
        "mariadb": version("mariadbd", "--version"),
        "redis": version("redis-server", "--version"),
        "wrk": version("wrk", "-v"),
        "load_before": os.getloadavg()[0],
        "commit": commit,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def save(path: Path, sections: Mapping[str, Section], described: Mapping[str, object]) -> None:
    """Write results as JSON, and the tables as Markdown. Other parts that the file has are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    parts |= {name: section.json() | {"run": dict(described)} for name, section in sections.items()}
    path.write_text(json.dumps({"parts": parts}, indent=1) + "\n", encoding="utf-8")
    tables = "\n".join(_section(part).markdown() + _description(part["run"]) for part in parts.values())
    path.with_suffix(".md").write_text(f"## Results of script/bench\n\n{tables}", encoding="utf-8")


def _section(part: dict[str, Any]) -> Section:
    figures = [
        Figure(**{name: value for name, value in figure.items() if name not in ("target", "met")})
        for figure in part["figures"]
    ]
    return Section(part["title"], figures, part["notes"])


def _description(run: dict[str, Any]) -> str:
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in run.items())
    return f"\nMachine: {facts}.\n"
