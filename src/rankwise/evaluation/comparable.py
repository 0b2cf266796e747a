"""Which of two evaluations' numbers on the same items may be subtracted, and which not for how they came about.

Items are the same where question and answer are, whatever the tokenizer. A loss in nats per token is then still of
other tokens, behind another prompt; an answer that was cut elsewhere, or searched by another pattern, is another one.
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
    """Why no difference of the two in this metric means anything, if so."""
    other = [NAMES[name] for name in _depends_on(metric, a, b) if _setting(a, name) != _setting(b, name)]
    return f"the two had another {' and another '.join(other)}" if other else None


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
    """Defaults of a task are not written down."""
    default = TaskConfig.model_fields[name].get_default() if name in TaskConfig.model_fields else None
    return evaluation.settings.get(name, default)
