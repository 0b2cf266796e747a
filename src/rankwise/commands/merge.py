"""Merge adapters into the files of their base model: plan, check, apply; or into one adapter.

merge          one or several adapters into a new model folder, streamed tensor by tensor
plan_of        the same without writing: what would be merged, how large, in how much memory
combined       several adapters, or one of too high a rank, as one adapter
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, cast, get_args

from rankwise.adapters.combining import Combination, Combining
from rankwise.commands.export import check_free
from rankwise.config.adapters import check_strength
from rankwise.errors import ConfigError, did_you_mean
from rankwise.exporting.merging.as_adapter import CombinedAdapter, combine
from rankwise.exporting.merging.inputs import Options, open_inputs
from rankwise.exporting.merging.plan import BY_NAME, MergePlan
from rankwise.exporting.merging.write import MergedFolder, refuse_unfinished, write_merged
from rankwise.exporting.trained_base import ONTO, Onto
from rankwise.methods.artifact import Opening
from rankwise.runs.records import Callback, WarningMessage, silent

METHODS: tuple[str, ...] = get_args(Combination)
LARGEST_WEIGHT = 100.0


def merge(
    adapters: Sequence[str | Path] | str | Path, to: str | Path, *, weights: Sequence[float] | None = None,
    method: str = "linear", density: float = 0.2, drop: float = 0.5, seed: int = 0, rank: int | None = None,
    error: float | None = None, strength: float = 1.0, dtype: str | None = None, onto: str = "trained",
    callback: Callback = silent, **opening: Unpack[Opening],
) -> MergedFolder:  # fmt: skip
    """Merge adapters into their base model and write it to the folder `to`, which must not exist yet.

    `adapters` are runs or adapter folders, each with one of `weights`; `method` is linear, ties, dare or svd
    (adapters/combining.py). `dtype` is float32, bfloat16, float16 or float64; by default every tensor keeps its own.
    `onto` selects the base weights to merge into (exporting/trained_base.py).
    """
    combining = combining_of(method, density=density, drop=drop, seed=seed, rank=rank, error=error)
    options = options_of(adapters, weights, combining, strength, onto, **opening)
    check_place_of_merge(Path(to))
    plan = plan_of(options, dtype, callback)
    return apply_plan(plan, Path(to), callback)


def check_place_of_merge(folder: Path) -> None:
    refuse_unfinished(folder)
    check_free(folder)


def plan_of(options: Options, dtype: str | None, callback: Callback = silent) -> MergePlan:
    """Plan a merge without writing anything. AdapterError with every problem where it cannot be done."""
    if dtype is not None and dtype not in BY_NAME:
        raise ConfigError([f'there is no dtype "{dtype}".{did_you_mean(dtype, BY_NAME)} Known: {", ".join(BY_NAME)}.'])
    return MergePlan(open_inputs(options, callback), dtype)


def apply_plan(plan: MergePlan, folder: Path, callback: Callback = silent) -> MergedFolder:
    for warning in plan.warnings:
        callback(WarningMessage(warning))
    return write_merged(plan, folder, callback)


def combined(options: Options, folder: Path, callback: Callback = silent) -> CombinedAdapter:
    """Write the adapters as one adapter."""
    if len(options.adapters) == 1 and not options.combining.cuts and options.strength == 1:
        raise ConfigError(["--as-adapter with a single adapter needs --rank or --error: otherwise it stays as it is."])
    return combine(options, folder, callback)


def options_of(
    adapters: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], weights: Sequence[float] | None,
    combining: Combining, strength: float, onto: str = "trained", **opening: Unpack[Opening],
) -> Options:  # fmt: skip
    check_strength(strength)
    names = [os.fspath(one) for one in ([adapters] if isinstance(adapters, str | os.PathLike) else adapters)]
    problems: list[str] = []
    if onto not in ONTO:
        problems.append(f'there is no base "{onto}" for --onto.{did_you_mean(onto, ONTO)} Known: {", ".join(ONTO)}.')
    if not names:
        problems.append("name at least one run or adapter folder to merge.")
    if strength == 0:
        problems.append("strength 0 is the base model itself, so there is nothing to merge.")
    if len(names) > 1 and weights is None:
        equal = ",".join([f"{1 / len(names):.2g}"] * len(names))
        problems.append(f"{len(names)} adapters need a weight each, such as --weights {equal}.")
    if weights is not None and len(weights) != len(names):
        problems.append(f"--weights has {len(weights)} numbers for {len(names)} adapters; give one for each.")
    if weights and not any(weights):
        problems.append("all weights are 0, which is the base model itself, so there is nothing to merge.")
    problems += [
        f"the weight {weight:g} is out of range: it must be between {-LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}."
        for weight in weights or ()
        if not (math.isfinite(weight) and abs(weight) <= LARGEST_WEIGHT)
    ]
    if problems:
        raise ConfigError(problems)
    return Options(names, weights, combining, strength, opening, onto=cast("Onto", onto))


def combining_of(
    method: str, *, density: float = 0.2, drop: float = 0.5, seed: int = 0, rank: int | None = None,
    error: float | None = None,
) -> Combining:  # fmt: skip
    problems: list[str] = []
    if method not in METHODS:
        problems.append(f'there is no method "{method}".{did_you_mean(method, METHODS)} Known: {", ".join(METHODS)}.')
    if not 0 < density <= 1:
        problems.append(f"--density {density:g} must be above 0 and at most 1: the share of each change that stays.")
    if not 0 <= drop < 1:
        problems.append(f"--drop {drop:g} must be at least 0 and below 1: the probability that a number is dropped.")
    problems += cutting_problems(rank, error)
    if method == "svd" and rank is None and error is None:
        problems.append("--combine svd needs --rank or --error.")
    if problems:
        raise ConfigError(problems)
    return Combining(cast("Combination", method), density, drop, seed, rank, error)


def cutting_problems(rank: int | None, error: float | None) -> list[str]:
    problems = [f"--rank {rank} must be at least 1."] if rank is not None and rank < 1 else []
    if error is not None and not 0 < error < 1:
        problems.append(f"--error {error:g} must be above 0 and below 1: the relative error of each layer.")
    return problems
