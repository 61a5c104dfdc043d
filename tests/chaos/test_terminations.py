"""Schedulers that stop at any moment complete what they have begun."""

import random

import pytest

from tests.chaos.deployment import RecordedDeployment
from tests.chaos.terminations import TerminationRun

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

STOPS = 6


@pytest.mark.requirement("M2")
def test_schedulers_that_stop_at_random_moments_cause_no_violations(deployment: RecordedDeployment) -> None:
    deployment.start(servers=1, schedulers=3)
    seed = str(random.randrange(10**9))
    run = TerminationRun(deployment, seed)

    run.run(until=lambda: len(run.statuses) >= STOPS)

    report = run.finish()
    assert not report.violations, "\n".join([*report.violations, f"seed {seed}", *run.steps])
    assert report.refreshes > 0
