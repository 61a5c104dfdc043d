"""script/bench measures two routes, its smallest part, and documents have its figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import document
from tests.conftest import cannot_run
from tests.helpers.servers import ROOT, Unavailable


@pytest.mark.processes
def test_bench_compares_a_route_with_bare_flask(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", "/livez"]

    done = subprocess.run(
        [*command, "--output", output, "routes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    if "wrk is not installed" in done.stderr:
        cannot_run(Unavailable("wrk is not installed: apt-get install wrk"))
    assert done.returncode == 0, done.stderr
    figures = {
        figure["name"]: figure for figure in json.loads(output.read_text())["parts"]["routes"]["figures"]
    }
    assert set(figures) == {"bare", "/livez"}
    assert figures["bare"]["value"] == 1
    assert figures["/livez"]["value"] > 0
    assert figures["/livez"]["more"]["CPU ms"] > 0
    assert "| /livez" in output.with_suffix(".md").read_text()


def test_documents_have_the_measured_figures() -> None:
    texts = [path.read_text(encoding="utf-8") for path in document.DOCUMENTS]

    assert [document.update(text, document.read()) for text in texts] == texts
    assert sorted(document.TABLES) == sorted(re.findall(r"<!-- (\w+) -->\n\|", "".join(texts)))
