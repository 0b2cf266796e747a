"""What a training by several processes does not do yet, refused by name before anything is computed."""

from __future__ import annotations

import sys

from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError

REST = "Train in one process (without --processes or torchrun)."


def refuse_several(experiment: Experiment) -> None:
    """ConfigError with all settings that need one process; each would need sums over rows that no process has alone."""
    training, device = experiment.training, experiment.base.device
    refused = {
        "training.learning_rate=tune (--tune)": training.learning_rate == "tune",
        "training.anchor (--anchor, --forget-at-most)": training.anchor is not None,
        "training.on_divergence=back-off": training.on_divergence == "back-off",
        f"model.device={device}": device not in ("auto", "cpu", "cuda"),
        "Windows": sys.platform == "win32",
    }
    problems = [
        f"several processes cannot train with {name} yet. {REST}" for name, is_used in refused.items() if is_used
    ]
    if problems:
        raise ConfigError(problems)


def refuse_preference(objective: str) -> None:
    """The same for preference pairs, which are known as such once the rows are looked at."""
    if objective == "preference":
        raise ConfigError([f"several processes cannot train on preference pairs (--objective preference) yet. {REST}"])
