"""Schedulers are told to stop at random moments, while all connections are due again and again."""

import random
import time
from collections.abc import Callable

from tests.chaos.checker import Report, check
from tests.chaos.deployment import RecordedDeployment
from tests.helpers.processes import Scheduler
from tests.helpers.servers import eventually

CONNECTIONS = 30
# Slow enough that many calls are in progress at any moment of a round.
LATENCY_MS = 150
ROUND_SECONDS = 0.5  # about as long as the refreshes of a round take


class TerminationRun:
    """Rounds from a seed. In each, all connections are due, and some schedulers get SIGTERM.

    Spotify accepts each refresh token once, and nothing is broken. So no response may be lost, and each
    generation costs one call.
    """

    def __init__(self, deployment: RecordedDeployment, seed: str) -> None:
        self.seed = seed
        self.steps: list[str] = []
        self.statuses: list[int] = []  # with which schedulers have ended
        self.longest = 0.0  # how many seconds one took to end
        self._deployment = deployment
        self._random = random.Random(seed)
        deployment.reset(rotate=True)
        people = [person["id"] for person in deployment.sandbox.seed(CONNECTIONS)]
        visits = [deployment.submit(deployment.visitor, person) for person in people]
        for visit in visits:
            visit.result()
        self._ids = [deployment.spotify_user_id_of(person) for person in people]
        deployment.sandbox.settings(latency_ms={"token": LATENCY_MS})
        deployment.resume_schedulers()

    def run(self, until: Callable[[], bool]) -> None:
        """Make rounds until this is true, or a grant does not become fresh."""
        while not until():
            self._deployment.expire(*self._ids)
            for _ in range(self._random.choice((1, 1, 2))):
                time.sleep(self._random.uniform(0, ROUND_SECONDS))
                count = self._random.choice((1, 1, 2, 3))
                self._terminate(self._random.sample(self._deployment.schedulers, count))
            try:
                eventually(lambda: not self._deployment.stale_connections())
            except AssertionError:
                return  # `finish` finds out why

    def _terminate(self, schedulers: list[Scheduler]) -> None:
        began = time.monotonic()
        for scheduler in schedulers:
            scheduler.terminate()
        for scheduler in schedulers:
            status = scheduler.wait()
            seconds = time.monotonic() - began
            self.statuses.append(status)
            self.longest = max(self.longest, seconds)
            self.steps.append(f"{scheduler} ended with {status} after {seconds:.2f} s")
        for scheduler in schedulers:
            scheduler.launch()
        for scheduler in schedulers:
            scheduler.wait_until_up()

    def finish(self) -> Report:
        """Check the history. A status other than 0 is a violation, too."""
        self._deployment.settle()
        report = check(self._deployment.history())
        report.violations += [f"A scheduler ended with {status}." for status in self.statuses if status]
        return report
