"""What trackers receive of a run, under the names that dashboards know from other trainers.

    a line of metrics.jsonl               numbers of its step
    kind step                             train/loss, train/learning_rate, train/grad_norm, train/epoch, …
    kind validation, score                eval/loss, eval/accuracy, eval/rouge_l, …
    kind earlier                          earlier/RUN/loss, earlier/RUN/exact, …
    kind budget                           forgetting/divergence, forgetting/anchor_weight
    kind ranks                            ranks/mean, ranks/budget, … and a histogram over layers
    kind back-off                         back_off/begun, back_off/learning_rate
    kind sample                           nothing: an answer is a text

Settings that are texts, such as a system message, are left out and say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.runs.data_report import DataReport
from rankwise.runs.evaluations import Evaluation, leaves
from rankwise.runs.manifest import Manifest

OTHER_NAMES = {"gradient_norm": "grad_norm"}
"""Of a step: names that Hugging Face's Trainer made usual."""
NO_NUMBERS = ("kind", "step", "steps")
TEXTS = {"prompt", "completion", "system", "prompts", "new_tokens", "labels"}
"""Settings whose values are texts of the user or of the rows, by the last part of their names."""
NOT_LOGGED = "(a text, which is not logged)"
HISTOGRAM = "ranks/layers"
WEIGHTS = ".safetensors"


def values_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one line of the metrics log, by name, and the rank of every layer."""
    match row.get("kind"):
        case "step":
            fields = {name: value for name, value in row.items() if name not in NO_NUMBERS}
            return _numeric({f"train/{OTHER_NAMES.get(name, name)}": value for name, value in fields.items()})
        case "validation":
            return _numeric({"eval/loss": row["loss"]})
        case "score":
            return _numeric({f"eval/{row['metric']}": row["value"]})
        case "earlier":
            return _numeric({f"earlier/{row['run']}/{name}": value for name, value in row["scores"].items()})
        case "budget":
            return _numeric({"forgetting/divergence": row["divergence"], "forgetting/anchor_weight": row["weight"]})
        case "back-off":
            return _numeric({"back_off/begun": row["begun"], "back_off/learning_rate": row["learning_rate"]})
        case "ranks":
            return _of_ranks(row, list(row["ranks"].values()))
        case _:
            return {}


def _of_ranks(row: Mapping[str, Any], ranks: list[int]) -> dict[str, Any]:
    values = {"ranks/budget": row["budget"], "ranks/of": row["of"]}
    if not ranks:
        return _numeric(values)
    values |= {"ranks/mean": sum(ranks) / len(ranks), "ranks/smallest": min(ranks), "ranks/largest": max(ranks)}
    return _numeric(values | {"ranks/empty_layers": sum(rank == 0 for rank in ranks)}) | {HISTOGRAM: ranks}


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """The settings by dotted names. Lists become one text."""
    return {
        name: NOT_LOGGED if value and TEXTS & set(name.split(".")) else _plain(value)
        for name, value in leaves(experiment.model_dump(mode="json")).items()
        if value is not None
    }


def facts_before(manifest: Manifest, data: DataReport | None) -> dict[str, Any]:
    """What is known before the first step."""
    base = {f"base/{name}": value for name, value in manifest.base_model.model_dump().items()}
    rows = {f"data/{name}": value for name, value in _of_data(data)}
    forecast = {} if manifest.forecast is None else leaves(manifest.forecast.model_dump(mode="json"))
    versions = {f"versions/{name}": value for name, value in manifest.versions.items()}
    given = base | rows | {_slashed("forecast", name): value for name, value in forecast.items()} | versions
    return {name: value for name, value in given.items() if value is not None}


def _of_data(data: DataReport | None) -> Iterator[tuple[str, Any]]:
    """Counts, and never a name of a label, a column or a row."""
    if data is None:
        return
    yield "format", data.format
    for name in (
        "rows", "used", "skipped", "validation_rows", "sequences", "tokens", "loss_tokens", "eos_in_loss", "truncated",
        "without_loss_tokens", "duplicates", "near_duplicates", "control_tokens_as_text", "distinct_labels",
    ):  # fmt: skip
        yield name, getattr(data, name)
    for name, value in ({} if data.lengths is None else data.lengths.model_dump()).items():
        yield f"lengths/{name}", value
    if data.overlap is not None:
        yield from (("overlap/exact", data.overlap.exact), ("overlap/near", data.overlap.near))
    yield "sha256", ",".join(file.sha256 for file in data.files)


def results_of(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> dict[str, float | str]:
    """What is known at the end: numbers and words."""
    given: dict[str, Any] = {"status": manifest.status}
    if manifest.forecast is not None:
        forecast = leaves(manifest.forecast.model_dump(mode="json", exclude={"memory"}))
        given |= {_slashed("forecast", name): value for name, value in forecast.items()}
    if manifest.results is not None:
        given |= {_slashed("result", name): value for name, value in leaves(manifest.results.model_dump()).items()}
    for file, sha256 in (manifest.result_sha256 or {}).items():
        if file.endswith(WEIGHTS):
            given[f"sha256/{file}"] = sha256
    for one in evaluations.values():
        given |= _of_evaluation(one)
    words = {name: value for name, value in given.items() if isinstance(value, str)}
    return _numeric(given) | words


def _of_evaluation(one: Evaluation) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for whose, scores in (("", one.tuned), ("base/", one.base)):
        for metric, measured in ({} if scores is None else scores.metrics).items():
            parts = measured.model_dump()
            given |= {f"evaluation/{one.task}/{whose}{metric}": parts["value"]}
            given |= {f"evaluation/{one.task}/{whose}{metric}/{end}": parts[end] for end in ("low", "high")}
    if one.forgetting is not None:
        names = ("kl", "low", "high", "delta_nll", "agreement")
        given |= {f"evaluation/forgetting/{name}": getattr(one.forgetting, name) for name in names}
    return given


def _slashed(prefix: str, dotted: str) -> str:
    return f"{prefix}/{dotted.replace('.', '/')}"


def _numeric(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else ", ".join(map(str, value)) if value else ""
