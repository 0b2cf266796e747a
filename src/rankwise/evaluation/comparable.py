"""Rules for which metrics of two evaluations may be compared, given how each was obtained.

Items count as the same if question and answer are, whatever the tokenizer. A loss per token still differs if the tokens
or the prompt differ, and so does an answer that was cut at another length or searched with another pattern.
"""

from __future__ import annotations

from typing import Any

from rankwise.config.tasks import CHOSEN, LIKELIHOOD, TaskConfig, is_running_text
from rankwise.runs.evaluations import Evaluation

NAMES = {
    "tokenizer": "tokenizer", "template": "chat template", "system": "system message", "chat": "use of the template",
    "pattern": "pattern", "max_new_tokens": "limit of new tokens", "filter": "filter of lm-eval",
}  # fmt: skip


def set_apart(metric: str, a: Evaluation, b: Evaluation) -> str | None:
    """Say why the two cannot be compared in this metric; None if they can."""
    other = [NAMES[name] for name in _depends_on(metric, a, b) if _setting(a, name) != _setting(b, name)]
    return f"the two evaluations differ in {' and '.join(other)}" if other else None


def _depends_on(metric: str, a: Evaluation, b: Evaluation) -> tuple[str, ...]:
    if metric == "loss":
        if is_running_text(a.data) and is_running_text(b.data):
            return ("tokenizer",)
        asked = _setting(a, "chat") or _setting(b, "chat")
        return ("tokenizer", "template", "system", "chat") if asked else ("tokenizer",)
    if metric in LIKELIHOOD or metric.startswith(CHOSEN):
        return ()
    return ("pattern", "max_new_tokens", "filter") if metric == "regex" else ("max_new_tokens", "filter")


def _setting(evaluation: Evaluation, name: str) -> Any:
    """Return a setting; evaluations do not store defaults."""
    default = TaskConfig.model_fields[name].get_default() if name in TaskConfig.model_fields else None
    return evaluation.settings.get(name, default)
