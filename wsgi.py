"""The WSGI application, for gunicorn and for `flask`."""

import sys

import click

from app import create_app, logs
from app.spotify import rekeying
from config import Config, ConfigError, read_environment


def serves() -> bool:
    """Whether this process is to serve, under whatever server, rather than to run another command."""
    command = click.get_current_context(silent=True)
    return command is None or command.info_name == "run"


try:
    config = Config.from_env(read_environment())
except ConfigError as error:
    # A traceback would bury the one thing the operator has to read. Exit status 3 is what
    # gunicorn takes for "this will never boot"; after any other it would start workers forever.
    sys.stderr.write(f"Backline cannot start; the settings are not complete:\n{error}\n")
    sys.exit(3)

logs.configure(level=config.log_level, style=config.log_format)
app = create_app(config)

if serves():
    rekeying.require_keys(app)
