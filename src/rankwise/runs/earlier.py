"""Settings of runs from earlier versions: missing settings get the behaviour of that version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwise.config.experiment import Experiment


def as_then(spec: Any) -> Any:
    """Fill in `held_out_order: last`, the behaviour before this setting existed."""
    data = spec.get("data") if isinstance(spec, dict) else None
    if isinstance(data, dict) and data.get("held_out") and "held_out_order" not in data:
        return spec | {"data": data | {"held_out_order": "last"}}
    return spec


def as_begun(stored: Path, experiment: Experiment) -> Experiment:
    """Give an experiment the behaviour of the stored run for settings that neither of them names."""
    spec = json.loads(stored.read_text(encoding="utf-8"))
    then = as_then(spec)
    if then is spec or "held_out_order" in experiment.data.model_fields_set:
        return experiment
    order = {"held_out_order": then["data"]["held_out_order"]}
    return experiment.model_copy(update={"data": experiment.data.model_copy(update=order)})
