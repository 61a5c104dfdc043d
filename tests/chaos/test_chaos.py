"""Real processes refresh exactly once, and survive crashes and outages."""

import random

import pytest

from tests.chaos import scenarios
from tests.chaos.deployment import RecordedDeployment
from tests.chaos.generator import RandomRun

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

RANDOM_SECONDS = 5


@pytest.fixture(scope="module")
def product(deployment: RecordedDeployment) -> RecordedDeployment:
    deployment.start(schedulers=2)
    return deployment


@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_scripted_scenarios_have_no_violations(product: RecordedDeployment, rotate: bool) -> None:
    wrong = []
    for name in scenarios.scenario_names(rotate=rotate):
        report, failure = scenarios.run(product, name, rotate=rotate)
        wrong += [f"{name}: {sentence}" for sentence in report.violations]
        if failure is not None:
            wrong.append(f"{name}: {failure or 'its own assertion failed'}\n{scenarios.where(failure)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_random_faults_cause_no_violations(product: RecordedDeployment, rotate: bool) -> None:
    seed = str(random.randrange(10**9))
    run = RandomRun(product, seed, rotate=rotate)

    run.run(seconds=RANDOM_SECONDS)

    report = run.finish()
    details = [*report.violations, f"seed {seed}", *run.steps]
    assert not report.violations, "\n".join(details)
    assert report.refreshes > 0
