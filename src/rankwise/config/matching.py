"""The rule by which targets, layer numbers and patterns select modules, for a model in memory and for a plan.

A name matches the end of a module's path after a dot; anything else is a regular expression (expressions.py). A target
or pattern that matches nothing is an error that names the nearest match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rankwise.config.experts import (
    expert_parameters,
    left_out_experts,
    named_experts,
    no_adapter_over,
    not_by_their_module,
    refuse_beside_experts,
    stacked_parameters,
)
from rankwise.config.expressions import explained, matcher, names_of, once_matched
from rankwise.config.modules import (
    ALL_CONV,
    ALL_LINEAR,
    AUTO,
    Modules,
    Selection,
    inner_convolutions,
    layer_number,
    left_out,
    left_out_of_all,
    linear_layers,
    no_inner_convolution,
    tower_layers,
)
from rankwise.errors import TargetError, did_you_mean, some


def select(
    modules: Modules, targets: Sequence[str], layers: tuple[int, ...] | None, *,
    only_rows: str, settings: Mapping[str, object],
) -> Selection:  # fmt: skip
    """The modules that get an adapter with these `settings`. `only_rows` is the sentence by which
    those are refused whose weight does not have one row for each output."""
    chosen: set[str] = set()
    experts: tuple[list[str], list[str]] = [], []
    targets, notes = _resolved(targets, modules)
    for target in targets:
        matching = [path for path in _named(target, modules) if _in_layers(path, layers)]
        if not matching:
            raise TargetError(_nothing_in_layers(target, layers, modules))
        chosen.update(matching)
        notes += _notes(target, matching, layers, modules)
        for meant, more in zip(experts, _experts_meant(target, modules), strict=True):
            meant += [path for path in more if path not in meant and _in_layers(path, layers)]
    notes += left_out_experts([path for path in experts[0] if path not in chosen], experts[1])
    paths = [path for path in modules if path in chosen]
    _refuse_absent_blocks(paths, targets, layers, modules)
    if tied := [path for path in paths if modules[path].tied]:
        raise TargetError(
            f'target "{tied[0]}" shares its weight with the input embedding, so an adapter on it could not be merged '
            "or served. Leave it out."
        )
    others = [f'"{path}" ({modules[path].name})' for path in paths if modules[path].kind not in ("linear", "conv1d")]
    if others and only_rows:
        raise TargetError(only_rows.format(some(others)))
    refuse_beside_experts(expert_parameters(paths, modules), settings)
    return Selection(paths, notes)


def _resolved(targets: Sequence[str], modules: Modules) -> tuple[list[str], list[str]]:
    """`auto` is all-linear, and all-conv for a model that has no linear layer but its head."""
    if AUTO not in targets or linear_layers(modules) or not inner_convolutions(modules):
        return [ALL_LINEAR if target == AUTO else target for target in targets], []
    note = f"This model has no linear layer but its head, so its convolutions get the adapters (targets {ALL_CONV})"
    return [ALL_CONV if target == AUTO else target for target in targets], [note]


def _named(target: str, modules: Modules, *, also_head: bool = False) -> list[str]:
    if target == ALL_LINEAR:
        return linear_layers(modules, also_head=also_head)
    if target == ALL_CONV:
        return inner_convolutions(modules)
    matches = matcher(target, "target")
    matching = [path for path in modules if matches(path)]
    experts = expert_parameters(matching, modules)
    adaptable = [path for path in matching if modules[path].kind and path not in experts] or experts
    if not adaptable:
        _refuse_around_experts(target, modules)
    if matching and not adaptable:
        raise TargetError(_nothing_adaptable(target, matching, modules))
    return adaptable if matching else once_matched(matches, modules)


def _refuse_around_experts(target: str, modules: Modules) -> None:
    """Refuse a target that names no layer, but experts of a model's own code or a module around experts."""
    own, others = _experts_meant(target, modules)
    if own:
        raise TargetError(not_by_their_module(target, own))
    if others:
        raise TargetError(no_adapter_over(target, others))


def _experts_meant(target: str, modules: Modules) -> tuple[list[str], list[str]]:
    """Parameters of experts that a target names or is around: those that can be adapted, and those that cannot."""
    if target == ALL_LINEAR:
        return expert_parameters(modules, modules), stacked_parameters(modules, modules)
    return ([], []) if target == ALL_CONV else named_experts(matcher(target, "target"), modules)


def _notes(target: str, chosen: list[str], layers: tuple[int, ...] | None, modules: Modules) -> list[str]:
    """What there is to say about a target that means the layers `chosen`."""
    here = [path for path in modules if _in_layers(path, layers)]
    if target == ALL_CONV:
        return [f'"{ALL_CONV}" leaves out {note}' for note in left_out_of_all(here, modules)]
    if target == ALL_LINEAR:
        towers = [path for path in tower_layers(modules) if path in here]
        note = (
            f"{len(towers)} layers that read images or sounds ({some(towers, 2)}) get no adapter, since rows of text "
            "do not reach them. Name them in the targets to adapt them"
        )
        return [note] if towers else []
    matches = matcher(target, "target")
    old = [] if any(map(matches, chosen)) else [explained(target, chosen)]
    others = left_out([path for path in here if matches(path)], modules)
    return old + [f'"{target}" leaves out {note}' for note in others]


def _nothing_adaptable(target: str, matching: list[str], modules: Modules) -> str:
    if problems := left_out(matching, modules):
        return f'target "{target}" names {"; and ".join(problems)}.'
    kinds = some(sorted({modules[path].name for path in matching}))
    inside = [path for path in modules if any(path.startswith(f"{outer}.") for outer in matching)]
    return (
        f'target "{target}" names {kinds}, which cannot be adapted; linear layers, Conv1D, Conv2d and embeddings can. '
        f"It contains {some(_leaf_counts(inside, modules)) or 'none of these'}."
    )


def _in_layers(path: str, layers: tuple[int, ...] | None) -> bool:
    return layers is None or layer_number(path) in layers


def _refuse_absent_blocks(
    paths: list[str], targets: Sequence[str], layers: tuple[int, ...] | None, modules: Modules
) -> None:
    """Refuse block numbers in which no layer is adapted."""
    absent = sorted(set(layers or ()) - {layer_number(path) for path in paths})
    if absent:
        there = {layer_number(path) for target in targets for path in _named(target, modules, also_head=True)}
        blocks = ranges(number for number in there if number is not None)
        raise TargetError(
            f"--layers names {ranges(absent)}, but the targets are in blocks {blocks} of this model. Choose from "
            "these blocks."
        )


def ranges(numbers: Iterable[int]) -> str:
    """Write the numbers 0, 1, 2 and 5 as "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return some(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _nothing_in_layers(target: str, layers: tuple[int, ...] | None, modules: Modules) -> str:
    everywhere = _named(target, modules, also_head=True)
    if everywhere and layers is not None:
        numbers = sorted({number for path in everywhere if (number := layer_number(path)) is not None})
        here = f"blocks {numbers[0]}-{numbers[-1]}" if numbers else "no numbered block"
        return f'target "{target}" matches layers in {here}, but none in blocks {some(map(str, layers))}.'
    if target == ALL_CONV:
        return no_inner_convolution(modules)
    if target == ALL_LINEAR and (convolutions := inner_convolutions(modules)):
        return (
            f'target "{target}" matches no layer of this model, which has no linear layer but its head. It has '
            f"{len(convolutions)} convolutions that can be adapted: use {ALL_CONV}."
        )
    leaves = sorted({path.rpartition(".")[2] for path, seen in modules.items() if seen.kind})
    hint = did_you_mean(target.rpartition(".")[2], [*leaves, ALL_LINEAR])
    counts = some(_leaf_counts(modules, modules))
    return f'target "{target}" matches no layer of this model. Its layers are {counts}.{hint}'


def _leaf_counts(paths: Iterable[str], modules: Modules) -> list[str]:
    counts = Counter(path.rpartition(".")[2] for path in paths if modules[path].kind)
    return [f"{leaf} ({count}x)" for leaf, count in counts.items()]


def by_pattern(
    paths: list[str], pattern: dict[str, int] | dict[str, float], otherwise: float, setting: str
) -> list[float]:
    """Value of each path. The first pattern that matches decides, as in PEFT."""
    rules = [(matcher(key, setting), value) for key, value in pattern.items()]
    for (matches, _), key in zip(rules, pattern, strict=True):
        if not any(matches(path) for path in paths):
            once = once_matched(matches, paths)
            guess = did_you_mean(key, {path.rpartition(".")[2] for path in paths})
            hint = f" In transformers 5 these layers are called {names_of(once)}." if once else guess
            raise TargetError(f'{setting} "{key}" matches none of the {len(paths)} adapted layers.{hint}')
    return [next((value for matches, value in rules if matches(path)), otherwise) for path in paths]


def split_names(text: str) -> list[str]:
    """Split a list at its commas, except commas inside brackets: `q_proj,(k|v)_proj` is two targets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def parse_layers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError("write block numbers as 0-3,7")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 10_000:
            raise ValueError(f"{part.strip()} is not a range of blocks")
        numbers.extend(range(low, high + 1))
    return tuple(sorted(set(numbers)))
