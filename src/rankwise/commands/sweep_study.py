"""A sweep's trials as Optuna keeps them: a journal in the sweep's folder, to which every outcome is added at once.

Optuna is an extra (`rankwise[sweep]`), and this is the only module that imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.sweep import Axis
from rankwise.errors import ConfigError, RunError

JOURNAL, GIVEN = "journal.log", "rankwise"


@dataclass(frozen=True)
class Outcome:
    number: int
    values: dict[str, Any]
    loss: float | None


@dataclass
class Study:
    study: Any
    """Optuna's."""
    distributions: dict[str, Any]
    method: str

    @classmethod
    def opened(
        cls, folder: Path, axes: list[Axis], planned: list[dict[str, Any]], *, seed: int, given: dict[str, Any]
    ) -> Study:
        """A new study, or the one that lies in the folder. RunError where that has other settings."""
        optuna = _optuna()
        folder.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        )  # fmt: skip
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(study_name=folder.name, storage=storage, sampler=sampler, load_if_exists=True)
        method = "grid" if planned else "TPE of Optuna"
        given = given | {"method": method}
        begun = study.user_attrs.get(GIVEN)
        if begun is None:
            for values in planned:
                study.enqueue_trial(values)
            study.set_user_attr(GIVEN, given)
        elif begun != given:
            differing = ", ".join(f"{part}" for part in given if begun.get(part) != given[part])
            raise RunError(
                f"{folder} was begun with other settings ({differing}), and its trials cannot be compared with new "
                "ones. Choose another name with --run, or remove the folder."
            )
        # a sampler that goes on must not repeat the values that it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        return cls(study, {axis.key: _distribution(optuna, axis, grid=bool(planned)) for axis in axes}, method)

    @property
    def finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def next(self, count: int) -> tuple[int, dict[str, Any]] | None:
        """The number and the values of a trial to run: one that a process left behind, or a new one; None after `count`
        of them."""
        for trial in self.study.trials:
            if trial.state.name == "RUNNING" and len(trial.params) == len(self.distributions):
                return trial.number, dict(trial.params)
        if self.finished >= count:
            return None
        trial = self.study.ask(self.distributions)
        return trial.number, dict(trial.params)

    def tell(self, number: int, loss: float | None) -> None:
        """None where the run failed."""
        state = _optuna().trial.TrialState
        self.study.tell(number, loss, state=state.FAIL if loss is None else state.COMPLETE)

    def outcomes(self) -> Iterator[Outcome]:
        for trial in self.study.trials:
            if trial.state.is_finished():
                yield Outcome(trial.number, dict(trial.params), trial.value)


def _distribution(optuna: Any, axis: Axis, *, grid: bool) -> Any:
    if grid or not axis.is_range:
        return optuna.distributions.CategoricalDistribution(axis.points)
    if axis.integer:
        return optuna.distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise ConfigError(["a sweep needs Optuna, which is not installed: pip install 'rankwise[sweep]'."]) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
