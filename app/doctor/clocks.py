"""Checks that the clocks of all servers agree."""

from app.doctor.result import CheckResult, ok, warning
from app.infra import clock

MAX_SECONDS = 2.0


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
