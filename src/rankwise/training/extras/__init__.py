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
    "rankwise.training.extras.trackers:Trackers": lambda run: (run.tracking,) if run.tracking.log_to else None,
    "rankwise.training.extras.replay:ReplayedRows": lambda run: (
        None if (replay := run.training.replay) is None else (replay, run.data, run.training)
    ),
    "rankwise.training.extras.anchor:HeldToBase": lambda run: run.training.anchor and (run.training.anchor,),
    "rankwise.training.extras.budgets:Budgets": lambda run: (
        None if (anchor := run.training.anchor) is None or anchor.forget_at_most is None else (anchor,)
    ),
    "rankwise.training.extras.tuning:TunedRate": lambda run: () if run.training.learning_rate == "tune" else None,
    "rankwise.training.extras.earlier_rounds:EarlierRounds": lambda run: (
        None if (start := run.adapter.start_from) is None else (
            start, None if excludes("training.replay", "objective", run.objective) else run.training,
            run.model.sharded,
        )
    ),
}  # fmt: skip
"""By dotted name, the sections of the settings that it is made of; None where they don't ask for it."""
