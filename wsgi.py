"""The WSGI application, for gunicorn and for `flask`."""

import sys

from app import create_app, logs
from config import Config, ConfigError, read_environment

try:
    config = Config.from_env(read_environment())
except ConfigError as error:
    # A traceback would bury the one thing the operator has to read. Exit status 3 is what
    # gunicorn takes for "this will never boot"; after any other it would start workers forever.
    sys.stderr.write(f"Backline cannot start; the settings are not complete:\n{error}\n")
    sys.exit(3)

logs.configure(level=config.log_level, style=config.log_format)
app = create_app(config)
