"""Metrics of a worker whose disk is full (deploy/metrics_files.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT

pytestmark = pytest.mark.sqlite_only

KIB = 1024
# Counts before the disk is full, when it is, and after there is room again.
COUNT = """
import os, sys
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess
from deploy import metrics, metrics_files

directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
metrics_files.install()

def fill():
    descriptor = os.open(Path(directory, "filler"), os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        os.close(descriptor)

def shown(name):
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return [line for line in generate_latest(registry).decode().splitlines() if line.startswith(name)]

growing = Counter("growing", "Has more labels than fit into its file.", ["label"])
growing.labels("first").inc()
fill()
for number in range(2000):
    growing.labels(f"label {number}").inc()
print(len(shown("growing_total")) > 100)
if os.fork() == 0:  # a worker that starts now has no file
    Counter("new", "Of a process without a file.").inc()
    os._exit(0)
print(os.wait()[1])
metrics.merge_dead(directory)
Path(directory, "filler").unlink()
print(shown("growing_total")[0])
"""


def test_metrics_do_not_end_a_process_whose_disk_is_full(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size={256 * KIB} tmpfs {tmp_path}"
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*in_namespace, mount], check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("this needs a kernel that lets users mount file systems of their own")

    done = subprocess.run(
        [*in_namespace, f'{mount} && exec "$@"', "sh", sys.executable, "-c", COUNT],
        cwd=ROOT,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True", "0", 'growing_total{label="first"} 1.0']
