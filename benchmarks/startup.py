"""How fast the server starts, and how much memory it needs."""

import statistics
import subprocess
import sys
import time

from benchmarks import client, routes
from benchmarks.deployment import running_backline, running_servers
from benchmarks.processes import WORKERS, memory_mib
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from tests.conftest import ANY_PORT_REDIRECT_URI
from tests.helpers.servers import ROOT, process_environment

IMPORT = "import time; began = time.process_time(); import wsgi; print(time.process_time() - began)"


def run(options: Options) -> Section:
    """Import the app, start the server, and look at its workers after some load."""
    times = []
    with running_servers() as servers:
        env = process_environment({**servers.settings, "SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI})
        imports = []
        for _ in range(options.rounds):
            progress("importing wsgi")
            done = subprocess.run(
                [sys.executable, "-c", IMPORT], cwd=ROOT, env=env, capture_output=True, text=True, check=True
            )
            imports.append(float(done.stdout))
        for _ in range(options.rounds):
            progress("starting gunicorn")
            began = time.monotonic()
            with running_backline(servers, workers=1):
                times.append(time.monotonic() - began)
        with running_backline(servers, routes.SHARED) as backline:
            for target in routes.routes(backline):
                progress(f"memory: {target.name} under load")
                client.measure(target, 1)
            workers = backline.server.workers
            rss = statistics.mean(memory_mib(pid) for pid in workers)
            pss = sum(memory_mib(pid, "Pss") for pid in backline.tree.pids)
    figures = [
        Figure("cold start to the first response", statistics.median(times), "s", at_most=1.0),
        Figure("CPU time of `import wsgi`", statistics.median(imports), "s", at_most=0.7),
        Figure("memory (RSS) of a worker", rss, "MiB", at_most=80),
        Figure(f"memory (PSS) of the arbiter and {WORKERS} workers together", pss, "MiB"),
    ]
    notes = [
        f"Medians of {options.rounds}. The first response is that of /readyz, which uses MariaDB and Redis.",
        "Memory after each route was under load for a second. RSS counts shared pages in every process.",
    ]
    return Section("Startup", figures, notes, {"starts": times, "imports": imports})
