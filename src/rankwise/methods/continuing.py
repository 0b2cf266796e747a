"""Settings of a training that begins with an adapter: the adapter's own, and those that the user may still choose.

    given settings  +  the adapter's layers, ranks, scale and method  ->  settings of the run

A value that was given and differs from the adapter's is refused, since it would make another adapter of it. Dropout and
the learning rate of B belong to the training and stay free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rankwise.config.adapters import HeadConfig, LoraConfig
from rankwise.config.matching import matcher
from rankwise.config.method import MethodConfig
from rankwise.errors import ConfigError, some

OF_TRAINING = frozenset({"dropout", "b_rate"})
"""Settings that leave the adapter itself as it is."""
WAY_OUT = (
    "Leave these settings out, since the adapter brings its own. For other values, begin a new adapter without --from, "
    "or merge this one into its base first (rankwise export RUN --to FOLDER --format merged)."
)


def continued(given: MethodConfig, own: MethodConfig, described: str) -> MethodConfig:
    """The settings `own` of an adapter with what `given` chooses for its training.

    `described` names the adapter in messages. ConfigError lists every setting of `given` that contradicts it.
    """
    chosen = given.model_fields_set - {"start_from"}
    if problems := [*_other_method(given, own, chosen), *_other_shape(given, own, chosen)]:
        listed = [f"{problem} {WAY_OUT if problem is problems[-1] else ''}".rstrip() for problem in problems]
        raise ConfigError([f"{described} is continued: {listed[0]}", *listed[1:]])
    free = {name: getattr(given, name) for name in chosen & OF_TRAINING & type(own).model_fields.keys()}
    return own.model_copy(update={**free, "start_from": given.start_from})


def _other_method(given: MethodConfig, own: MethodConfig, chosen: Iterable[str]) -> list[str]:
    if type(given) is type(own) or not ("method" in chosen or type(given) is not LoraConfig):
        return []
    what = "trained heads and no adapted layers" if isinstance(own, HeadConfig) else "adapted layers"
    return [f"adapter.method is {_method(given)}, but the adapter has {what} (method {_method(own)})."]


def _method(config: MethodConfig) -> Any:
    return getattr(config, "method", None)


def _other_shape(given: MethodConfig, own: MethodConfig, chosen: Iterable[str]) -> list[str]:
    fields, problems = type(own).model_fields.keys(), []
    for name in sorted(set(chosen) - OF_TRAINING - {"method"}):
        value: Any = getattr(given, name)
        actual: Any = getattr(own, name, None)
        if name in fields and (value == actual or (name == "targets" and _same_layers(value, actual))):
            continue
        problems.append(f"adapter.{name} is {_listed(value)}, but {_actual(name, own, fields)}.")
    return problems


def _actual(name: str, own: MethodConfig, fields: Iterable[str]) -> str:
    if name not in fields:
        return "the adapter has no adapted layers"
    if name == "layers":
        return "the adapter has layers already"
    pattern: Any = getattr(own, f"{name}_pattern", None)
    varied = " at most, and other values in some layers" if name == "rank" and pattern else ""
    return f"the adapter has {_listed(getattr(own, name))}{varied}"


def _listed(value: Any) -> str:
    return some(map(str, value), 4) if isinstance(value, tuple | list) else str(value)


def _same_layers(names: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether each name means some of these layers, and each layer is meant."""
    meant = [matcher(name, "target") for name in names]
    return all(any(map(matches, paths)) for matches in meant) and all(
        any(matches(path) for matches in meant) for path in paths
    )
