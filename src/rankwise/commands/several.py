"""What a training by several processes does not do yet, refused by name before anything is computed."""

from __future__ import annotations

import sys

from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError

REST = "Train in one process (without --processes or torchrun)."


def refuse_several(experiment: Experiment) -> None:
    """ConfigError with all that needs one process."""
    device = experiment.base.device
    refused = {f"model.device={device}": device not in ("auto", "cpu", "cuda"), "Windows": sys.platform == "win32"}
    problems = [
        f"several processes cannot train with {name} yet. {REST}" for name, is_used in refused.items() if is_used
    ]
    if problems:
        raise ConfigError(problems)
