"""What the head of a classifier of texts reads of a whole text, as the folder of its model says.

A model that rankwise wrote has it in its data report. A sentence-transformers model lists its parts in modules.json,
and the folder of its pooling has a config.json. Every other model keeps what its own code does.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.config.classification import ClassificationConfig
from rankwise.runs.row_facts import Pooling
from rankwise.system.foreign_json import read_if_sound

MODULES, REPORT, SETTINGS = "modules.json", "data_report.json", "1_Pooling/config.json"
KNOWN: dict[str, Pooling] = {
    "mean": "mean", "cls": "cls", "max": "max", "lasttoken": "own", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "own",
}  # fmt: skip
"""By the names that the versions of sentence-transformers write."""


def pooling_of(folder: Path | None, config: ClassificationConfig) -> tuple[Pooling, str | None]:
    """The pooling over the model in `folder`, and a sentence where `auto` decided it and not the model's own code."""
    if config.pooling != "auto":
        return config.pooling, None
    report, modules = (None if folder is None else read_if_sound(folder / name) for name in (REPORT, MODULES))
    targets = report.get("targets") if isinstance(report, dict) else None
    if isinstance(targets, dict):
        return KNOWN.get(str(targets.get("pooling")), "own"), None
    parts = [one for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    part = next((one for one in parts if str(one.get("type")).endswith(".Pooling")), None)
    if folder is None or part is None:
        return "own", None
    settings = read_if_sound(folder / Path(str(part.get("path"))).name / "config.json")
    if not isinstance(settings, dict):
        why = f"the model's {MODULES} names a pooling but not which, and the mean is the usual one"
        return "mean", f"the head reads the mean of all tokens: {why} (classification.pooling)"
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    mode = " and ".join(modes) or str(settings.get("pooling_mode"))
    if mode not in KNOWN:
        return "own", f"the pooling of the model's {MODULES} is {mode}, which is not known; its own code's is used"
    read = "first token" if KNOWN[mode] == "cls" else f"{KNOWN[mode]} of all tokens"
    said = f"the head reads the {read}, as the model's {MODULES} says (classification.pooling)"
    return KNOWN[mode], None if KNOWN[mode] == "own" else said
