"""The model card of an adapter: README.md beside its tensors, as the hub reads it and people do.

It is written from what a run recorded, so the same run has the same card. Names of models, runs and files may be
anybody's: settings go through a YAML writer, and in the text every sign that Markdown or HTML would obey is escaped. A
folder's path, which may name a person, is cut to its last part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import PurePath
from typing import Any

from rankwise.base.sources import FROM_GGUF, FROM_INDEX, GGUF_FILE, LOCAL
from rankwise.base.starters import STARTERS
from rankwise.config.forgetting import CODE_TEXT, OWN_TEXT, AnchorConfig
from rankwise.config.method import MethodConfig
from rankwise.config.yaml import dump_yaml
from rankwise.errors import some
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import objective_for
from rankwise.rows.files.hub import HUB
from rankwise.runs.data_report import DataReport, PartFacts
from rankwise.runs.lineage import Round, described
from rankwise.runs.manifest import BaseModelFacts, Forecasted, Results
from rankwise.system.extras import installed_version

UNKNOWN, NOT_KNOWN = "unknown", "not known"
OF_TEMPLATE = (
    "In the sections of the template that the European Commission published in July 2025 for Article 53(1)(d) of the "
    "AI Act. It is about the rows of this training; what the base model was trained on, its provider says. *Not known* "
    "is what the training did not record: whoever publishes the model fills it in."
)
SIZES = {
    "tokens": ((1e9, "less than 1 billion"), (1e13, "1 billion to 10 trillion"), (inf, "more than 10 trillion")),
    "images": ((1e6, "less than 1 million"), (1e9, "1 million to 1 billion"), (inf, "more than 1 billion")),
}
"""The template's ranges: below which number each ends."""
TEMPLATE = {
    "1. General information": (
        "provider", "versioned model name", "model dependencies", "date of placement on the Union market", "modality",
        "training data size", "types of content", "latest date of data acquisition", "linguistic characteristics"),
    "2. List of data sources": (
        "publicly available datasets", "private datasets obtained from third parties",
        "data crawled and scraped from online sources", "user data", "synthetic data", "other sources of data"),
    "3. Data processing aspects": (
        "respect of reservations of rights (text and data mining)", "removal of illegal content", "other information"),
}  # fmt: skip
"""The template's sections and fields."""
_OBEYED = re.compile(r"([!-,:-@\[-`{-~]|(?<=www)\.)", re.IGNORECASE)


@dataclass(frozen=True)
class CardFacts:
    run: str
    adapter: MethodConfig
    anchor: AnchorConfig | None
    base: BaseModelFacts
    base_licence: str
    data_report: DataReport
    results: Results
    learning_rate: float
    ranks: Sequence[int] = ()
    """The ranks of the adapted layers."""
    export: str = ""
    """How this folder differs from the run's own adapter."""
    lineage: tuple[Round, ...] = ()
    """The rounds before this one."""
    forecast: Forecasted | None = None

    @property
    def objective(self) -> Objective:
        return objective_for(self.data_report)

    @property
    def on_hub(self) -> bool:
        return self.base.source not in (LOCAL, FROM_GGUF, GGUF_FILE)

    @property
    def base_name(self) -> str:
        return self.base.name if self.on_hub else PurePath(self.base.name).name

    @property
    def method(self) -> str:
        return self.adapter.written_as


def card(facts: CardFacts) -> str:
    """The whole file."""
    known = _content(facts)
    parts = [
        f"# {escaped(facts.run)}",
        f"A {facts.method} adapter for {escaped(facts.base_name)}, trained with rankwise "
        f"{installed_version('rankwise')}.{f' {facts.export}' if facts.export else ''}",
        "## How it was trained", _table(_trained(facts)),
        "## How to load it", facts.objective.words.loading, _about_base(facts),
        "## Limits", _limits(facts),
        "## Summary of the training content", OF_TEMPLATE,
        *(f"### {title}\n\n{_table([(one, known.get(one, NOT_KNOWN)) for one in fields])}"
          for title, fields in TEMPLATE.items()),
    ]  # fmt: skip
    return f"---\n{dump_yaml(_front_matter(facts))}---\n\n" + "\n\n".join(parts) + "\n"


def retitled(text: str, run: str) -> str:
    """A card whose run has another name now."""
    return re.sub(r"^# .*$", lambda _: f"# {escaped(run)}", text, count=1, flags=re.MULTILINE)


def escaped(text: str) -> str:
    """Somebody's text as one line that Markdown shows and does not obey."""
    return _OBEYED.sub(r"\\\1", one_line(text))


def one_line(text: str) -> str:
    """Without what steers a terminal or turns the direction of reading."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    """A base that is no model of the hub is not named: the hub would link to whatever has that name there."""
    found: dict[str, Any] = {"base_model": one_line(facts.base.name)} if facts.on_hub else {}
    found |= {
        "library_name": "peft",
        "pipeline_tag": facts.objective.words.pipeline_tag,
        "tags": ["lora", *facts.adapter.tags, "transformers", "rankwise"],
    }
    licences = {"data_license": facts.data_report.licence, "base_model_license": facts.base_licence}
    return found | {key: one_line(licence) for key, licence in licences.items() if licence != UNKNOWN}


def _trained(facts: CardFacts) -> list[tuple[str, str]]:
    data_report, results, ranks = facts.data_report, facts.results, facts.ranks
    measured = data_report.validation_rows if data_report.validation is None else 0
    files = sorted({PurePath(file.name).name for file in data_report.files})
    learned, unit = data_report.learned, data_report.learned.loss_unit
    each = None if facts.forecast is None else facts.forecast.operations
    rows_used = (
        f"{data_report.used - measured:,} for training, {data_report.validation_rows:,} for validation, "
        f"{data_report.skipped:,} left out"
    )
    rows = [
        ("base model", f"{escaped(facts.base_name)} ({escaped(facts.base.source)})"),
        ("fingerprint of the base model", escaped(facts.base.fingerprint)),
        *_stored(facts.base),
        ("method", facts.method),
        *_ranks(ranks),
        *_rounds(facts.lineage),
        *_anchor(facts.anchor, results),
        *([("replay", escaped(data_report.replay.describe()))] if data_report.replay is not None else []),
        ("data", f"{escaped(', '.join(files[:3]))}{f' and {len(files) - 3} more files' if len(files) > 3 else ''}"),
        ("rows", rows_used),
        ("steps", f"{results.steps:,} at learning rate {facts.learning_rate:.2g}"),
        ("floating-point operations", f"about {each * results.steps:.2g}, by the model's shape" if each else NOT_KNOWN),
        ("training loss", f"{results.loss:.4f} {unit}, averaged over the last tenth of the steps"),
    ]  # fmt: skip
    if learned.names:
        rows.append((facts.objective.words.names, some(map(escaped, learned.names), 20)))
    if data_report.image_processing is not None:
        rows.append(("images", data_report.image_processing.describe()))
    before, after = results.validation_loss_before, results.validation_loss_after
    training = "this round" if facts.lineage else "training"
    if before is not None and after is not None:
        rows.append(("validation loss", f"{before:.4f} before {training} and {after:.4f} after, in {unit}"))
    before, after = results.validation_accuracy_before, results.validation_accuracy_after
    if before is not None and after is not None:
        rows.append(("validation accuracy", f"{before:.1%} before {training} and {after:.1%} after"))
    if data_report.pairs is not None:
        rows.append(("preference pairs", data_report.pairs.describe()))
    if results.preference is not None:
        rows.append(("validation pairs", results.preference.describe()))
    return [
        *rows,
        ("licence of the data", _licence(data_report.licence)),
        ("licence of the base model", _licence(facts.base_licence)),
    ]


def _stored(base: BaseModelFacts) -> list[tuple[str, str]]:
    """None where the base was in full."""
    return [("linear layers of the base model", f"stored as {base.quantization}")] if base.quantization else []


def _ranks(ranks: Sequence[int]) -> list[tuple[str, str]]:
    """The lines on ranks; empty where no layer was adapted."""
    if not ranks:
        return []
    mean = f"{min(ranks)} to {max(ranks)}, {sum(ranks) / len(ranks):.1f} on average"
    return [("rank", f"{ranks[0]}" if min(ranks) == max(ranks) else mean), ("adapted layers", f"{len(ranks):,}")]


def _rounds(lineage: Sequence[Round]) -> list[tuple[str, str]]:
    """What it was before this training. None for an adapter that began as a new one."""
    return [("rounds before this one", escaped(described(lineage, short=True)))] if lineage else []


def _content(facts: CardFacts) -> dict[str, str]:
    """What is known of the fields of `TEMPLATE`."""
    report, images, replay = facts.data_report, facts.data_report.images, facts.data_report.replay
    modality, unit, amount = (
        ("text", "tokens", report.tokens) if images is None else ("image", images.unit, images.images)
    )
    of_hub, files = ([one for one in report.files if one.name.startswith(HUB) == is_hub] for is_hub in (True, False))
    sizes = (f"{name} {unit}" for end, name in SIZES[unit] if amount is not None and amount < end)
    return {
        "versioned model name": escaped(facts.run),
        "model dependencies": f"{escaped(facts.base_name)} ({escaped(facts.base.fingerprint)})",
        "modality": modality, "types of content": f"rows in the format {escaped(report.format)}",
        "training data size": NOT_KNOWN if amount is None else f"{next(sizes)} ({amount:,} in {report.used:,} rows)",
        "publicly available datasets": _sources(of_hub) or f"none by name; of the files below {NOT_KNOWN}",
        "synthetic data": NOT_KNOWN if replay is None or replay.origins else escaped(replay.describe()),
        "other sources of data": _sources(files) or "none",
        "removal of illegal content": "rankwise looks for none and removes none; before, not known",
        "other information": f"{report.skipped:,} of {report.rows:,} rows left out, {report.duplicates:,} repeat an "
        f"earlier one exactly and {report.near_duplicates:,} nearly, {report.truncated or 0:,} shortened",
    }  # fmt: skip


def _sources(files: Sequence[PartFacts]) -> str:
    """By the last part of their names, which may be paths of this machine."""
    return some(
        (f"{escaped(one.name if one.name.startswith(HUB) else PurePath(one.name).name)} ({one.rows:,} rows, licence "
         f"{_licence(one.licence)}, SHA-256 {one.sha256[:16]})" for one in files), 8,
    )  # fmt: skip


def _licence(name: str) -> str:
    return NOT_KNOWN if name == UNKNOWN else escaped(name)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _about_base(facts: CardFacts) -> str:
    name = escaped(facts.base_name)
    if facts.base.source == LOCAL:
        named = (
            f"`adapter_config.json` names the folder that contained the base model ({name}) when this adapter was "
            "trained."
        )
        return f"{named} {facts.objective.words.base_elsewhere}"
    if facts.base.source == GGUF_FILE:
        return (
            f"The base model was the GGUF file {name} as it lies ({facts.base.quantization}), which PEFT cannot read. "
            "With rankwise, give the file (`--base-model path/to/file.gguf`); for llama.cpp, export the adapter "
            "(`rankwise export RUN --to FILE.gguf --format gguf-lora`), and for other engines the whole model "
            "(`--format merged`)."
        )
    if facts.base.source == FROM_GGUF:
        return (
            f"The base model was the GGUF file {name}, which PEFT cannot read. `adapter_config.json` names the folder "
            "of rankwise's cache that contains the file converted to safetensors. On a machine without that folder, "
            "give rankwise the file (`--base-model path/to/file.gguf`); or export the whole model where the run is "
            "(`rankwise export RUN --to FOLDER --format merged`), which transformers loads by itself."
        )
    return f"PEFT fetches the base model {name} from the hub.{_about_index(facts.base.source)}"


def _about_index(source: str) -> str:
    """How a starter's copy from the package index differs from the hub's model."""
    if not source.startswith(FROM_INDEX):
        return ""
    quantised = any(one.package in source and one.file.suffix == ".gguf" for one in STARTERS.values())
    how = ", which was quantised to 4 bits and converted back, so" if quantised else "; it may be that"
    return f" This adapter was trained on a copy from the package index{how} the hub's weights are slightly different."


def _limits(facts: CardFacts) -> str:
    return "\n".join((
        "- It was trained on the rows above and on nothing else; how it does on others was not measured.",
        f"- {facts.objective.words.unmeasured}",
        *([] if facts.base.quantization is None else [
            f"- It was trained over weights that were stored as {facts.base.quantization}. Over the full weights of "
            "the base model, or over another quantisation of them, its answers are somewhat different."
        ]),
        "- It keeps the errors and the bias of its base model, and may repeat text from its rows.",
        "- It has no licence of its own yet. Choose one that the licences of the data and of the base model allow.",
    ))  # fmt: skip


def _anchor(anchor: AnchorConfig | None, results: Results) -> list[tuple[str, str]]:
    """How the model was held to its base. None where it was not."""
    if anchor is None:
        return []
    text = PurePath(anchor.text).name if anchor.text is not None else OWN_TEXT + f", and {CODE_TEXT}" * anchor.code
    rows = [("held to its base", f"on {escaped(text)}, {anchor.tokens} tokens a step")]
    if results.budget is not None:
        budget = results.budget
        rows.append(("forgotten", f"{budget.divergence:.4f} nats per token, of {budget.forget_at_most:g} allowed"))
    for task in results.accuracy_budget.tasks if results.accuracy_budget is not None else ():
        rows.append((f"accuracy on {escaped(task.task)}", f"{task.base:.1%} of the base, {task.result:.1%} of this"))
    return rows
