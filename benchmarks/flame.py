"""Flame graphs of routes under load, drawn by py-spy."""

import re
import subprocess
from pathlib import Path

from benchmarks import client, routes
from benchmarks.deployment import running_backline, running_servers
from benchmarks.environments import python_environment
from benchmarks.processes import Target
from benchmarks.progress import Options, progress
from benchmarks.results import RESULTS, Figure, Section
from tests.helpers.servers import ROOT, Unavailable

NAMES = {"/api/session": "session", "/api/spotify/token": "token"}
SAMPLES_PER_SECOND = 200


def run(options: Options) -> Section:
    """Draw a flame graph of two routes: of an earlier version if there is one."""
    py_spy = python_environment("py-spy") / "py-spy"
    root, prefix = (ROOT, "flame") if options.before is None else (options.before, "flame-before")
    seconds = 3 if options.quick else 15
    files = []
    with running_servers(root) as servers, running_backline(servers, routes.SHARED, root=root) as backline:
        for target in routes.routes(backline):
            if target.name in NAMES:
                files.append(RESULTS / f"{prefix}-{NAMES[target.name]}.svg")
                _draw(py_spy, target, files[-1], seconds)
    figures = [Figure(f"`{file.name}`", file.stat().st_size / 1024, "KiB") for file in files]
    return Section(
        "Flame graphs", figures, ["Samples of the thread that held the GIL, in one of two workers."]
    )


def _draw(py_spy: Path, target: Target, file: Path, seconds: int) -> None:
    progress(f"{file.name}: {target.name} under load")
    client.measure(target, 1)
    worker = target.tree.pids[1]
    command = [str(py_spy), "record", "--gil", "--pid", str(worker), "--output", str(file)]
    command += ["--duration", str(seconds), "--rate", str(SAMPLES_PER_SECOND)]
    recording = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        client.measure(target, seconds + 1)
        output, _ = recording.communicate(timeout=60)
    finally:
        recording.kill()
    if recording.returncode != 0:
        raise Unavailable(f"py-spy cannot read a worker: {output.strip()[-300:]}")
    drawing = file.read_text(encoding="utf-8")
    file.write_text(
        re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\1GET {target.name}", drawing), encoding="utf-8"
    )
