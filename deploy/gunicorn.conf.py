"""gunicorn's settings: `gunicorn -c deploy/gunicorn.conf.py wsgi:app`, from the project's root.

Meant to stand behind nginx on the same machine. Every line says why it is not left to the default.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # gunicorn puts its own directory there only after it has read this file

from config import Config, ConfigError, read_environment  # noqa: E402
from deploy import metrics  # noqa: E402
from deploy.worker import Logger, Worker  # noqa: E402

try:
    settings = Config.from_env(read_environment())
except ConfigError as error:
    sys.exit(f"Backline cannot start. Correct these settings:\n{error}")

if settings.app_env == "development":
    with suppress(OSError):  # a full disk behind it
        sys.stderr.write("Backline runs with APP_ENV=development: not for the public.\n")

# Requests wait for MySQL, Redis and Spotify, not for the processor: threads let one process wait for many.
# This is gthread, with problem documents for what gunicorn refuses, which by default quote the request.
worker_class = Worker
workers = settings.web_concurrency
threads = settings.threads

# Loopback only: TLS, size limits and slow clients are nginx's work.
bind = f"127.0.0.1:{settings.port}"

# A worker that stops beating for this long is stuck as a whole, and is replaced. It is no limit for one
# request under gthread: the app keeps its own deadlines (10 s for a call to Spotify).
timeout = 30
# Longer than the longest request may take, so that a restart loses none.
graceful_timeout = 25
# nginx closes a connection to an upstream after 60 s of rest. The side that sends requests must be the one
# that closes, or a request meets a connection that has just gone.
keepalive = 75

# The heartbeat is a file that workers touch: on a disk that is busy, a healthy worker would look stuck.
# gunicorn chooses the file's name itself, so that the folder is everybody's does not matter.
memory = Path("/dev/shm")  # noqa: S108
worker_tmp_dir = str(memory) if memory.is_dir() else None

# Who may say that a request came by https. Others' X-Forwarded-Proto is ignored.
forwarded_allow_ips = "127.0.0.1,::1"
# One header says it, and nginx overwrites that one. The default believes two more, which nginx would pass on
# from the client, and answers 400 in HTML when they contradict each other.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
# The default lets a proxy's SCRIPT_NAME and PATH_INFO headers move the request to another path.
forwarder_headers = ""

# The app logs a line for each request, without the query: codes and states of the Spotify flow travel there.
accesslog = None
# gunicorn's own lines are JSON as well, and quote nothing of a request.
logger_class = Logger

# It would be one socket in the home directory for every gunicorn of this user, to command the server with.
control_socket_disable = True


# Where the workers put their numbers for /metrics, which any of them adds up when it is asked. Set before the
# app is loaded; a HUP goes on with the same, and another gunicorn that this one starts (USR2) has its own.
# In memory, unless TMPDIR says where: a disk that is full would end the worker that counts something.
own_metrics = f"{metrics.PREFIX}{os.getpid()}-"
if not Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")).name.startswith(own_metrics):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics.make_directory(os.environ.get("TMPDIR", worker_tmp_dir))


def child_exit(_server: Any, worker: Any) -> None:
    """Drop the current values of a worker that has ended, and keep what it has counted."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
    metrics.merge_dead(os.environ["PROMETHEUS_MULTIPROC_DIR"])


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    """Refuse to start while a key is missing that stored tokens need, and start delivering mail.

    Exit status 3 ends the arbiter too. Only the very first worker asks for keys: a worker that replaces
    another must not take the rest of them down, and when two refuse at once, gunicorn stumbles over the
    second and ends with a traceback and another status.
    """
    from app.spotify.tokens.key_rotation import require_keys

    services = worker.wsgi.extensions["backline"]
    if worker.age == 1:
        require_keys(worker.wsgi, services.token_cipher)
    # Mails that an earlier worker left behind must not wait for the next request.
    services.mailer.start()
