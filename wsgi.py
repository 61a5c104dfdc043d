"""The WSGI application, for gunicorn and for `flask`."""

# ruff: noqa: E402
import gc

# Nothing that is created here becomes garbage. Looking for it would take a fifth of the time to start.
gc.disable()

import logging
import sys

import click

from app import create_app
from app.infra import database, log_setup
from app.spotify.tokens import key_rotation
from app.web.request_log import RequestFields
from config import Config, ConfigError, read_environment

# The `flask` command that loads this module, if it is not gunicorn.
command = click.get_current_context(silent=True)

try:
    config = Config.from_env(read_environment())
except ConfigError as error:
    # A traceback would bury the one thing the operator has to read. Exit status 3 is what
    # gunicorn takes for "this will never boot"; after any other it would start workers forever.
    sys.stderr.write(f"Backline cannot start. Correct these settings:\n{error}\n")
    sys.exit(3)

log_setup.configure(level=config.log_level, style=config.log_format, filters=[RequestFields()])
logging.captureWarnings(True)  # Python writes them to standard error itself, however long that takes
try:
    app = create_app(config)
except ImportError as error:
    if not (error.name or "").startswith("MySQLdb"):
        raise
    sys.stderr.write(
        "DATABASE_URL needs mysqlclient, which is not installed. Run: script/bootstrap --mysql\n"
    )
    sys.exit(3)
if command is not None:
    database.init_migrations(app)

# gunicorn asks once, at its start (`deploy/gunicorn.conf.py`): a worker that is replaced must not
# take the others down. `flask scheduler` asks for itself.
if command is not None and command.info_name == "run":
    from app.doctor import checks

    services = app.extensions["backline"]
    with app.app_context():
        for line in checks.find_missing(services):
            sys.stderr.write(f"Not ready: {line}\n")
    key_rotation.require_keys(app, services.token_cipher)
    services.mailer.start()

# What exists by now lasts as long as the process, so the garbage collector can skip it.
gc.freeze()
gc.enable()
