"""What can be exported of a run, and what each engine would do with its adapter, before anything is written.

Each engine is judged by its rule (exporting/engine_rules.py) over the adapter as the run holds it (`peft`) and in the
form with one rank and scale for all layers (`portable`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.adapters.formats.peft import as_lora
from rankwise.adapters.weights import AdapterWeights
from rankwise.commands.export import FORMATS
from rankwise.errors import RankwiseError
from rankwise.exporting.engine_rules import RULES, verdicts
from rankwise.exporting.gguf import DTYPES as GGUF_DTYPES
from rankwise.exporting.merge import DTYPES
from rankwise.methods.artifact import open_artifact, stored_weights
from rankwise.runs.records import Callback, silent

UNIFORM = ("portable", "mlx", "gguf-lora")
"""Formats with one rank and scale."""
OF_SEVERAL = ("peft", "portable", "merged")
"""Formats that several engines read."""


@dataclass(frozen=True)
class EngineChoice:
    """`peft` and `portable` are None where the engine applies the trained change, or a sentence why not. `format` is
    the one to export for it."""

    engine: str
    version: str
    evidence: str
    peft: str | None
    portable: str | None
    format: str


@dataclass(frozen=True)
class ExportChoices:
    scales: bool
    """Whether the change can be exported at another strength."""
    formats: dict[str, str | None]
    """By format, None or a sentence why it is not possible."""
    engines: tuple[EngineChoice, ...]
    """Whether each engine applies the adapter, and the format to export for it; empty for a whole model and for a
    classifier, which the rules do not cover."""
    why_none: str | None = None
    dtypes: tuple[str, ...] = tuple(dict.fromkeys((*DTYPES, *GGUF_DTYPES)))
    """Number formats of a whole model."""


def export_choices(run: str, callback: Callback = silent) -> ExportChoices:
    artifact = open_artifact(run, callback)
    formats = {format: artifact.why_not(format) for format in FORMATS}
    strength = artifact.why_not("scaled") is None
    if (why := artifact.why_not("judged by engines")) is not None:
        return ExportChoices(strength, formats, (), why)
    own = as_lora(stored_weights(artifact, callback), empty=False)
    uniform, why = _uniform(own)
    if why is not None:
        formats |= dict.fromkeys(UNIFORM, why)
    return ExportChoices(strength, formats, _engines(own, uniform, formats))


def _uniform(weights: AdapterWeights) -> tuple[AdapterWeights | None, str | None]:
    """The adapter with one rank and scale, or why there is none, such as for DoRA."""
    try:
        return weights.portable(()), None
    except RankwiseError as error:
        return None, str(error)


def _engines(
    weights: AdapterWeights, other: AdapterWeights | None, formats: dict[str, str | None]
) -> tuple[EngineChoice, ...]:
    native = verdicts(weights)
    uniform = dict.fromkeys(RULES, formats["portable"]) if other is None else verdicts(other)
    return tuple(
        EngineChoice(
            name, rule.version, rule.evidence, native[name], uniform[name],
            _format_for(name, native[name], uniform[name], formats),
        ) for name, rule in RULES.items()
    )  # fmt: skip


def _format_for(engine: str, native: str | None, uniform: str | None, formats: dict[str, str | None]) -> str:
    """The engine's own format, or else the smallest that it reads as it was trained."""
    for format in RULES[engine].uses:
        if format not in OF_SEVERAL and formats[format] is None:
            return format
    if native is None:
        return "peft"
    return "portable" if uniform is None and formats["portable"] is None else "merged"
