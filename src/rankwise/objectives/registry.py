"""The objective of a name. This is the only place that lists them."""

from __future__ import annotations

from rankwise.config.experiment import Experiment
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {CAUSAL_LM.name: CAUSAL_LM}


def objective_of(experiment: Experiment) -> Objective:
    """`auto` is causal language modelling."""
    return CAUSAL_LM if experiment.objective == "auto" else OBJECTIVES[experiment.objective]
