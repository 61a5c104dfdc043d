"""Checks that the clocks of all servers agree."""

import sqlalchemy as sa

from app.doctor.result import CheckResult, ok, warning
from app.infra import clock

MAX_SECONDS = 2.0
_DATABASE_TIME = sa.text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6")


def check_database_clock(server: str, connection: sa.Connection) -> CheckResult:
    """Compare the time of MySQL or MariaDB with this machine's."""
    return check_clock(server, float(connection.execute(_DATABASE_TIME).scalar_one()))


def check_clock(server: str, timestamp: float) -> CheckResult:
    """Compare a server's time, in seconds since 1970, with this machine's."""
    ahead = timestamp - clock.utc_now().timestamp()
    if abs(ahead) <= MAX_SECONDS:
        return ok(f"{server}: its clock and this machine's agree")
    direction = "ahead of" if ahead > 0 else "behind"
    return warning(
        f"{server}: its clock is {abs(ahead):.0f} s {direction} this machine's",
        "Synchronize the clocks of all machines (NTP). Tokens and sessions expire according to them.",
    )
