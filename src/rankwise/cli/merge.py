"""`rankwise merge`: adapters into the weights of their base, or several into one; `rankwise extract`: an adapter
out of a fully fine-tuned model and its base.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, argument, option
from rankwise.errors import ConfigError, some
from rankwise.reporting.quantities import plural, size
from rankwise.runs.listing import run_names

if TYPE_CHECKING:
    from rankwise.exporting.extracting import Extracted
    from rankwise.exporting.merging.apply import Rounding
    from rankwise.exporting.merging.as_adapter import CombinedAdapter, LayerError
    from rankwise.exporting.merging.inputs import Options
    from rankwise.exporting.merging.write import MergedFolder

SHOWN = 8
NOTICED = 0.1
"""The share of a layer's change from which its rounding error is pointed at."""


def merge(
    adapters: Annotated[list[str] | None, argument(
        "Finished runs (names or folders) or PEFT adapter folders.", autocompletion=run_names)] = None,
    to: Annotated[Path | None, option("New folder to write.", "--to")] = None,
    weights: Annotated[str | None, option("Weight of each adapter, such as 0.7,0.3.")] = None,
    method: Annotated[str, option(
        "How to combine several adapters. linear: weighted sum. ties: keep the largest entries whose signs agree. "
        "dare: drop random entries. svd: weighted sum, truncated to --rank or --error.", "--combine",
        autocompletion=lambda: ["linear", "ties", "dare", "svd"])] = "linear",
    density: Annotated[float, option("ties: share of each layer's update to keep, largest entries first.")] = 0.2,
    drop: Annotated[float, option("dare: probability of dropping an entry.")] = 0.5,
    seed: Annotated[int, option("dare: seed for dropping entries.")] = 0,
    rank: Annotated[int | None, option("Truncate each layer's update to this rank.")] = None,
    error: Annotated[float | None, option(
        "Truncate each layer's update to the smallest rank with at most this relative error.")] = None,
    strength: Annotated[float, option("Scale of the combined update.")] = 1.0,
    dtype: Annotated[str | None, option(
        "Dtype of the merged model: float32, bfloat16, float16 or float64.  [default: each tensor's own]")] = None,
    onto: Annotated[str, option(
        "Base weights to merge into. trained: the ones used in training, dequantised if needed. original: the "
        "unquantised ones. nf4, int8: weights quantised this way, for adapters that don't record it.",
        autocompletion=lambda: ["trained", "original", "nf4", "int8"])] = "trained",
    as_adapter: Annotated[bool, option(
        "Write an adapter instead of a model: several combined, or one with a lower rank.", "--as-adapter")] = False,
    plan: Annotated[bool, option("Only print what would be merged.", "--plan")] = False,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Merge adapters into their base model, or several adapters into one."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.merge import combining_of, options_of

        combining = combining_of(method, density=density, drop=drop, seed=seed, rank=rank, error=error)
        options = options_of(
            adapters or [], _numbers(weights), combining, strength, onto, base_model=base_model, force_base=force_base,
            force_result=force_result,
        )  # fmt: skip
        if to is None and not plan:
            raise ConfigError(["name the folder to create with --to, or use --plan to only see what would be merged."])
        if as_adapter:
            _combine(options, to, display, dtype=dtype, plan=plan, as_json=as_json)
        else:
            _merge(options, to, dtype, display, plan_only=plan, as_json=as_json)


def _merge(
    options: Options, to: Path | None, dtype: str | None, display: Display, *, plan_only: bool, as_json: bool
) -> None:  # fmt: skip
    from rankwise.commands.merge import apply_plan, check_place_of_merge, plan_of

    if to is not None:
        check_place_of_merge(to)
    plan = plan_of(options, dtype, display)
    summary = plan.summary()
    if plan_only or to is None or not as_json:
        print_result(as_json, summary, *plan_lines(summary))
    if to is not None and not plan_only:
        merged = apply_plan(plan, to, display)
        print_result(as_json, summary | asdict(merged) | {"changed": summary["changed"]}, *merged_lines(merged))


def _combine(
    options: Options, to: Path | None, display: Display, *, dtype: str | None, plan: bool, as_json: bool
) -> None:  # fmt: skip
    from rankwise.commands.export import check_free
    from rankwise.commands.merge import combined

    problems = ["--plan is for merging into a model; leave it out with --as-adapter."] if plan else []
    if options.onto != "trained":
        problems.append("--onto is for merging into a model; leave it out with --as-adapter.")
    if dtype is not None:
        problems.append("--dtype is for merging into a model; an adapter is written in float32.")
    if problems or to is None:
        raise ConfigError(problems or ["name the folder to create with --to."])
    check_free(to)
    result = combined(options, to, display)
    print_result(as_json, result, *combined_lines(result))


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f'--weights "{text}" is no list of numbers, such as 0.7,0.3.']) from None


def plan_lines(plan: dict[str, Any]) -> list[str]:
    several = len(plan["adapters"]) > 1
    weighted = [f"{name} ({weight:g})" if several else name for name, weight in zip(plan["adapters"], plan["weights"],
                strict=True)]  # fmt: skip
    lines = [
        f"merge {', '.join(weighted)} into {plan['base']}"
        + (f" by {plan['method']}" if several or plan["method"] != "linear" else "")
        + (f" at strength {plan['strength']:g}" if plan["strength"] != 1 else ""),
        f"  writes {size(plan['bytes'])} as {plan['dtype']} in {plural(plan['files'], 'file')}, with about "
        f"{size(plan['memory_bytes'])} of memory beside the program",
        f"  changes {len(plan['changed']):,} of {plural(plan['tensors'], 'tensor')}: {some(plan['changed'], 3)}",
    ]
    if plan["base_quantized"]:
        lines.append(
            f"  adds the change to the {plan['base_quantized']} weights that it was trained over, unpacked, and not to "
            "the full ones of the base's files (--onto original does that)"
        )
    if plan["untied"]:
        lines.append(f"  no longer one weight, since only one of them changes: {some(plan['untied'])}")
    if plan["left_out"]:
        lines.append(f"  left out, since the classifier does not have them: {some(plan['left_out'], 4)}")
    return lines + [f"  warning: {warning}" for warning in plan["warnings"]]


def merged_lines(merged: MergedFolder) -> list[str]:
    lines = [f"{merged.folder}: {merged.changed:,} tensors changed, {size(merged.bytes)} of {merged.dtype}"]
    return lines + _rounding_lines(merged.roundings)


def _rounding_lines(roundings: tuple[Rounding, ...]) -> list[str]:
    if not roundings:
        return []
    worst = sorted(roundings, key=lambda item: -item.of_change)
    largest = max(one.largest for one in roundings)
    lines = [
        f"rounding: numbers by at most {largest:.2g} of themselves, and a layer's change by at most "
        f"{worst[0].of_change:.2g} of itself",
        *_first([
            f"  {one.name}: change {one.change:.2g} of the weight, rounding {one.of_change:.2g} of the change and at "
            f"most {one.largest:.2g} of a number"
            for one in worst
        ]),
    ]  # fmt: skip
    if lossy := sum(one.of_change > NOTICED for one in worst):
        lines.append(
            f"warning: rounding is more than {NOTICED:.0%} of the change in {plural(lossy, 'layer')}, so part of the "
            "training may be lost; --dtype float32 avoids this"
        )
    return lines


def combined_lines(result: CombinedAdapter) -> list[str]:
    head = f"{result.folder}: an adapter of rank {result.rank}, {result.parameters:,} parameters, {size(result.bytes)}"
    if not result.error and all(layer.error == 0 for layer in result.layers):
        return [f"{head}; exactly the combination of its factors"]
    return [f"{head}; it differs from the whole change by {result.error:.2%}", *_layer_lines(result.layers)]


def _layer_lines(layers: tuple[LayerError, ...]) -> list[str]:
    worst = sorted(layers, key=lambda item: -item.error)
    return _first([f"  {one.layer}: rank {one.rank} of {one.before}, error {one.error:.2%}" for one in worst])


def _first(worst: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = f"  {len(worst) - SHOWN:,} more layers have smaller errors (--json lists all)"
    return worst if len(worst) <= SHOWN else [*worst[:SHOWN], more]


def extracted_lines(result: Extracted) -> list[str]:
    ranks = [layer.rank for layer in result.layers]
    lines = [
        f"{result.folder}: {plural(len(ranks), 'layer')} of rank {min(ranks)} to {max(ranks)}, "
        f"{result.parameters:,} parameters, {size(result.bytes)}",
        f"of the change of these layers {result.error:.2%} is left out, and of that of the whole model "
        f"{result.error_of_all:.2%} (Frobenius norms)",
        *_layer_lines(result.layers),
    ]
    if result.outside:
        lines.append("changed outside linear layers, which a LoRA cannot hold:")
        lines += [
            f"  {one.kind}: {plural(one.tensors, 'tensor')}, {one.share:.2%} of the whole change"
            for one in result.outside
        ]
    return lines


def extract(
    tuned: Annotated[str, argument("A full fine-tuning run (name or folder) or a fine-tuned model's folder.",
        autocompletion=run_names)],
    base: Annotated[str | None, argument(
        "The model before fine-tuning: a folder, starter name or Hugging Face id.  [default: the run's]")] = None,
    to: Annotated[Path, option("New folder to write.", "--to")] = ...,  # pyright: ignore[reportArgumentType]
    rank: Annotated[int | None, option("Rank of every layer.")] = None,
    error: Annotated[float | None, option(
        "Instead of --rank: for each layer, the smallest rank with at most this relative error, such as 0.05.")] = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Extract a LoRA adapter from a fully fine-tuned model, and report the approximation error."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.extract import extract as extract_command

        extracted = extract_command(
            tuned, to, base, rank=rank, error=error, force_base=force_base, force_result=force_result, callback=display
        )  # fmt: skip
        print_result(as_json, extracted, *extracted_lines(extracted))
