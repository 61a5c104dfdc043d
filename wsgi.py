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
from app.infra.cli_command import report_unwritable_output
from app.settings.inherited import inherited_config
from app.settings.start import refuse_to_start
from app.web.request_log import RequestFields
from config import ConfigError, load

# The `flask` command that loads this module, if it is not gunicorn.
command = click.get_current_context(silent=True)
if command is not None:
    sys.excepthook = report_unwritable_output

try:
    config = inherited_config() or load()
except ConfigError as error:
    if command is not None and "doctor" in sys.argv:
        from app.doctor.report import print_settings

        print_settings(str(error), as_json="--json" in sys.argv)
        sys.exit(1)
    refuse_to_start(str(error))

log_setup.configure(level=config.log_level, style=config.log_format, filters=[RequestFields()])
logging.captureWarnings(True)  # Python writes them to standard error itself, however long that takes
app = create_app(config)
if command is not None:
    database.init_migrations(app)

# gunicorn asks once, at its start (`deploy/gunicorn.conf.py`): a worker that is replaced must not
# take the others down. `flask scheduler` asks for itself.
if command is not None and command.info_name == "run":
    from app.doctor import checks, startup

    services = app.extensions["backline"]
    startup.require_usable_servers(app, services)
    with app.app_context():
        for line in checks.find_missing(services):
            sys.stderr.write(f"Not ready: {line}\n")
    services.mailer.start()

# What exists by now lasts as long as the process, so the garbage collector can skip it.
gc.freeze()
gc.enable()
