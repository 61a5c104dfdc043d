"""Libraries that gunicorn's arbiter imports, so that workers start faster and share their memory.

The arbiter does not import the app itself (see `deploy/worker.py`): a HUP would start workers with the old
code and settings, and workers would share what must not be shared, such as connections, threads, and metrics.
Libraries have none of these when they are imported (`tests/system/deploy/test_preload.py`). See
docs/decisions/0061-preload-libraries-only.md.
"""

import gc
from contextlib import suppress
from importlib import import_module

# Everything that `wsgi.py` imports from outside the project; modules that these import are left out.
LIBRARIES = (
    "argon2",
    "concurrent.futures.thread",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "flask",
    "flask_cors",
    "flask_session.redis",
    "flask_smorest",
    "flask_sqlalchemy.cli",
    "flask_swagger_ui",
    "idna",
    "logging.config",
    "msgspec",
    "MySQLdb.connections",
    "prometheus_client.core",
    "prometheus_client.multiprocess",
    "redis",
    "requests",
    "smtplib",
    "sqlalchemy.dialects.mysql.mysqldb",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "sqlalchemy.ext.compiler",
    "sqlalchemy.ext.hybrid",
    "webargs.flaskparser",
    "werkzeug.middleware.proxy_fix",
)


def import_libraries() -> None:
    """Import all libraries, and exempt what exists by now from garbage collection.

    Otherwise, each worker's collector would write to all objects, and so copy the memory that they are in.
    """
    gc.disable()
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):  # MySQL's driver is optional; for others, `wsgi` says so
            import_module(name)
    gc.freeze()
    gc.enable()
