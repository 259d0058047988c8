"""Fewer repetitions of the simulated reports: no promise is broken beyond chance."""

import pytest
from scipy import stats
from simulate_study import SCENARIOS, simulate

REPORTS = 200


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_promises_hold(scenario):
    count = simulate(scenario, REPORTS, seed=1)
    against = "greater" if scenario.at_most else "less"
    assert stats.binomtest(count, REPORTS, scenario.level, alternative=against).pvalue > 0.001
