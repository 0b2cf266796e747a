"""What `rankwise merge` and `rankwise extract` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankwise.errors import some

if TYPE_CHECKING:
    from rankwise.exporting.extracting import Extracted
    from rankwise.exporting.merging.apply import Rounding
    from rankwise.exporting.merging.as_adapter import CombinedAdapter, LayerError
    from rankwise.exporting.merging.write import MergedFolder

SHOWN = 8
NOTICED = 0.1
"""The share of a layer's change from which its rounding error is pointed at."""


def plan_lines(plan: dict[str, Any]) -> list[str]:
    several = len(plan["adapters"]) > 1
    weighted = [f"{name} ({weight:g})" if several else name for name, weight in zip(plan["adapters"], plan["weights"],
                strict=True)]  # fmt: skip
    lines = [
        f"merge {', '.join(weighted)} into {plan['base']}"
        + (f" by {plan['method']}" if several or plan["method"] != "linear" else "")
        + (f" at strength {plan['strength']:g}" if plan["strength"] != 1 else ""),
        f"  writes {plan['bytes'] / 1e6:,.1f} MB as {plan['dtype']} in {_count(plan['files'], 'file')}, with about "
        f"{plan['memory_bytes'] / 1e6:,.0f} MB of memory beside the program",
        f"  changes {len(plan['changed']):,} of {_count(plan['tensors'], 'tensor')}: {some(plan['changed'], 3)}",
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
    lines = [f"{merged.folder}: {merged.changed:,} tensors changed, {merged.bytes / 1e6:,.1f} MB of {merged.dtype}"]
    return lines + _rounding_lines(merged.roundings)


def _rounding_lines(roundings: tuple[Rounding, ...]) -> list[str]:
    if not roundings:
        return []
    worst = sorted(roundings, key=lambda one: -one.of_change)
    largest = max(one.largest for one in roundings)
    lines = [
        f"rounding: numbers by at most {largest:.2g} of themselves, and a layer's change by at most "
        f"{worst[0].of_change:.2g} of itself",
        *(
            f"  {one.name}: change {one.change:.2g} of the weight, rounding {one.of_change:.2g} of the change and at "
            f"most {one.largest:.2g} of a number"
            for one in worst[:SHOWN]
        ),
    ]
    if len(worst) > SHOWN:
        lines.append(f"  {len(worst) - SHOWN:,} more layers have smaller errors (--json lists all)")
    if lossy := sum(one.of_change > NOTICED for one in worst):
        lines.append(
            f"warning: rounding is more than {NOTICED:.0%} of the change in {_count(lossy, 'layer')}, so part of the "
            "training may be lost; --dtype float32 avoids this"
        )
    return lines


def combined_lines(result: CombinedAdapter) -> list[str]:
    head = (
        f"{result.folder}: an adapter of rank {result.rank}, {result.parameters:,} parameters, "
        f"{result.bytes / 1e6:,.1f} MB"
    )
    if not result.error and all(layer.error == 0 for layer in result.layers):
        return [f"{head}; exactly the combination of its factors"]
    return [f"{head}; it differs from the whole change by {result.error:.2%}", *_layer_lines(result.layers)]


def _layer_lines(layers: tuple[LayerError, ...]) -> list[str]:
    worst = sorted(layers, key=lambda one: -one.error)
    lines = [f"  {one.layer}: rank {one.rank} of {one.before}, error {one.error:.2%}" for one in worst[:SHOWN]]
    if len(worst) > SHOWN:
        lines.append(f"  {len(worst) - SHOWN:,} more layers have smaller errors (--json lists all)")
    return lines


def extracted_lines(result: Extracted) -> list[str]:
    ranks = [layer.rank for layer in result.layers]
    lines = [
        f"{result.folder}: {_count(len(ranks), 'layer')} of rank {min(ranks)} to {max(ranks)}, "
        f"{result.parameters:,} parameters, {result.bytes / 1e6:,.1f} MB",
        f"of the change of these layers {result.error:.2%} is left out, and of that of the whole model "
        f"{result.error_of_all:.2%} (Frobenius norms)",
        *_layer_lines(result.layers),
    ]
    if result.outside:
        lines.append("changed outside linear layers, which a LoRA cannot hold:")
        lines += [
            f"  {one.kind}: {_count(one.tensors, 'tensor')}, {one.share:.2%} of the whole change"
            for one in result.outside
        ]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
