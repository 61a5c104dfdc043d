"""The settings of gunicorn: `gunicorn -c deploy/gunicorn.conf.py wsgi:app`, from the project's root.

It runs behind nginx on the same machine. Each comment says why a setting differs from the default.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # gunicorn does so only after it has read this file

from app.settings.inherited import pass_to_workers  # noqa: E402
from app.settings.start import refuse_to_start  # noqa: E402
from config import ConfigError, load  # noqa: E402
from deploy import listener, metrics, preload  # noqa: E402
from deploy.worker import Logger, Worker, hold_stop_signals  # noqa: E402

problems: list[str] = []
try:
    settings = load()
    pass_to_workers(settings)  # until the next HUP
except ConfigError as error:
    problems.append(str(error))

# Workers touch a file as their heartbeat. On a busy disk, a healthy worker would seem stuck. gunicorn chooses
# a safe name for the file, so it does not matter that everyone can write to this directory.
memory = Path("/dev/shm")  # noqa: S108 # nosec B108
worker_tmp_dir = str(memory) if memory.is_dir() else None

# The directory where workers keep their metrics; the worker that serves /metrics adds them up. It must be set
# before the app is loaded. After a HUP it stays the same, and a new gunicorn (USR2) creates its own. It is in
# memory, unless TMPDIR is set.
own_metrics = f"{metrics.PREFIX}{os.getpid()}-"
if not Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")).name.startswith(own_metrics):
    parent = os.environ.get("TMPDIR", worker_tmp_dir)
    try:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics.make_directory(parent)
    except OSError as error:
        problems.append(
            f"TMPDIR: workers cannot keep their metrics in {parent} ({type(error).__name__}). Set it to a "
            "directory that this user can write to."
        )

if problems:
    refuse_to_start("\n".join(problems))

if settings.app_env == "development":
    with suppress(OSError):  # the disk may be full
        sys.stderr.write("Backline runs with APP_ENV=development: not for the public.\n")

# Requests wait for MySQL, Redis, and Spotify, and not for the processor, so threads suit them. This is
# gthread, but it responds to bad requests with problem documents. gunicorn's own responses quote the request.
worker_class = Worker
workers = settings.web_concurrency
threads = settings.threads

# Loopback only: nginx takes care of TLS, size limits, and slow clients.
bind = f"127.0.0.1:{settings.port}"
listener.drop_if_moved(settings.port)

# A worker without a heartbeat for this long is replaced. Under gthread, this does not limit single requests:
# the app has its own deadlines, such as 10 s for a call to Spotify.
timeout = 30
# Longer than any request takes, so that a restart interrupts none.
graceful_timeout = 25
# nginx closes its idle connections after 60 s. It must close them first: otherwise, it may send a request on
# a connection that gunicorn has just closed.
keepalive = 75

# X-Forwarded-Proto is accepted from these addresses only.
forwarded_allow_ips = "127.0.0.1,::1"
# nginx overwrites this header. By default, gunicorn also trusts two that nginx passes on from the client, and
# responds with 400 in HTML when they contradict each other.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
# By default, a proxy's SCRIPT_NAME and PATH_INFO headers change the path of a request.
forwarder_headers = ""

# The app logs each request itself, without the query, which may contain the code and state of an OAuth
# callback.
accesslog = None
# Writes gunicorn's own log as JSON as well, without quoting requests.
logger_class = Logger

# The socket would be in the home directory, and the same for all gunicorns of this user.
control_socket_disable = True

# After the directory was set: it decides how prometheus_client stores metrics.
preload.import_libraries()
from deploy import metrics_files  # noqa: E402

metrics_files.install()


def when_ready(server: Any) -> None:
    """Let systemd keep the listening socket: connections wait during a restart.

    Without this check, a HUP with invalid settings would end gunicorn.
    """
    listener.keep(each.sock for each in server.LISTENERS)
    # gunicorn 27.0.1 would tell its successor (USR2) that the socket is descriptor 3, which it has closed.
    server.systemd = False
    reload = server.reload

    def reload_if_valid() -> None:
        try:
            load()
        except ConfigError as error:
            server.log.error("reload_refused", extra={"problems": str(error).splitlines()})
        else:
            reload()

    server.reload = reload_if_valid


def pre_fork(_server: Any, _worker: Any) -> None:
    """Lose no signal that stops the worker before it is ready."""
    hold_stop_signals()


def child_exit(_server: Any, worker: Any) -> None:
    """Drop the gauges of a worker that has ended, and keep its counters."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
    metrics.merge_dead(os.environ["PROMETHEUS_MULTIPROC_DIR"])


def on_exit(_server: Any) -> None:
    """Remove the directory for metrics."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    """Exit if the database or Redis cannot be used as it is. Start delivering mail and sampling metrics.

    Exit status 3 ends the arbiter as well. Only the first worker checks: one that replaces another must not
    stop the rest, and if two exit at once, gunicorn ends with a traceback and another status.
    """
    from app.doctor.startup import require_usable_servers

    services = worker.wsgi.extensions["backline"]
    if worker.age == 1:
        require_usable_servers(worker.wsgi, services)
    # Emails that an earlier worker left must not wait for the next request.
    services.mailer.start()
    worker.sample_metrics = worker.wsgi.extensions["sample_metrics"]
