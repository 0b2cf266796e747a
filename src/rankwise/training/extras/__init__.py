"""What a training may do besides learning from its rows: for each extra, the settings that ask for it and the class
that is made of them.

A module is imported when a training asks for it, so a plain training loads none. Extras are called in this order:
replayed rows are there before a budget looks at what is trained on, an anchor before the budget that changes its
weight, and what may be refused before trials take their time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.config.incompatible import excludes

EXTRAS: Mapping[str, Callable[[Experiment], tuple[Any, ...] | None]] = {
    "rankwise.training.extras.trackers:Trackers": lambda given: (given.tracking,) if given.tracking.log_to else None,
    "rankwise.training.extras.replay:ReplayedRows": lambda given: (
        None if (replay := given.training.replay) is None else (replay, given.data, given.training)
    ),
    "rankwise.training.extras.anchor:HeldToBase": lambda given: given.training.anchor and (given.training.anchor,),
    "rankwise.training.extras.budgets:Budgets": lambda given: (
        (anchor,) if (anchor := given.training.anchor) is not None and anchor.forget_at_most is not None else None
    ),
    "rankwise.training.extras.tuning:TunedRate": lambda given: () if given.training.learning_rate == "tune" else None,
    "rankwise.training.extras.earlier_rounds:EarlierRounds": lambda given: (
        None if given.adapter.start_from is None else (
            given.adapter.start_from, given.training.replay,
            not (given.model.sharded or excludes("training.replay", "objective", given.objective)), given.model.sharded,
        )
    ),
}  # fmt: skip
"""By dotted name, the sections of the settings that it is made of; None where they don't ask for it."""
