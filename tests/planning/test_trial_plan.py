"""What the trials of --tune may cost, and from when on they are worth it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.planning.tuning import LEAST_LAST, TrialPlan, most_cost


@settings(max_examples=draws(200))
@given(st.integers(1, 20_000), st.integers(1, 256), st.floats(1, 4000), st.booleans())
def test_trials_cost_no_more_than_they_may_and_are_long_enough(steps, batch, row_tokens, whole):
    plan = TrialPlan.of(steps, batch, row_tokens, 2 if whole else 4)
    assert most_cost(steps) <= (0.3 if steps < 300 else 0.15) * steps
    if plan is None:
        assert steps < 200 or batch < 8 or row_tokens < 64
    else:
        assert 0 < plan.cost <= most_cost(steps) and plan.stages[-1].steps >= LEAST_LAST


@settings(max_examples=draws(200))
@given(st.integers(100, 1000), st.sampled_from([8, 16, 64]), st.floats(8, 2000), st.booleans())
def test_a_step_of_few_tokens_takes_longer_than_its_share(steps, batch, row_tokens, whole):
    """So a trial's step counts for more of the run's, and fewer of them are made."""
    small, large = (TrialPlan.of(steps, batch, tokens, 2 if whole else 4) for tokens in (row_tokens, 2 * row_tokens))
    if small is not None:
        assert large is not None and large.stages[-1].steps >= small.stages[-1].steps
        assert small.cost_of([40]) - small.cost_of([30]) > 10 * small.batch / small.run_batch


def test_runs_whose_trials_would_tell_nothing_have_none():
    """The tasks of lab/tuning.py: 60 steps of 4 short rows, and 100 of 16 sentences."""
    assert TrialPlan.of(60, 4, 55.0, 4) is None
    assert TrialPlan.of(60, 4, 130.0, 4) is None
    labels = TrialPlan.of(100, 16, 20.0, 4)
    assert labels is not None and 20 < labels.cost <= 25
