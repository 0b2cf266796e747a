"""A run as a Python object: its results and metrics as plain values, a plot, and answers from the tuned model.

run = rankwise.load_run("first")
run.metrics[-1]["loss"]        # records of the metrics log, which a pandas DataFrame takes as they are
run.plot()                     # a matplotlib figure that a notebook shows
run.generate("Hello")          # the model is loaded at the first call and stays loaded
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.config.generation import GenerationConfig
from rankwise.errors import RunError
from rankwise.runs.directory import RunDirectory, open_any_run
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import Callback, silent

if TYPE_CHECKING:
    from rankwise.inference.tuned_model import TunedModel
    from rankwise.methods.trainable import Trainable
    from rankwise.models.loaded import LoadedModel
    from rankwise.python.plot import LossPlot


class Run:
    """A run by its name or folder, finished or not. RunError where there is none."""

    def __init__(
        self, name: str | Path, callback: Callback = silent, model: TunedModel | None = None, **loading: Any
    ) -> None:
        self.directory: RunDirectory = open_any_run(str(name))
        self._callback, self._loading = callback, loading
        if model is not None:
            self.__dict__["tuned"] = model

    def __repr__(self) -> str:
        return f"<rankwise run {self.name!r}, {self.manifest.status}, {self.folder}>"

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def folder(self) -> Path:
        return self.directory.folder

    @property
    def manifest(self) -> Manifest:
        """Versions, machine, hashes, results and warnings of the run."""
        return self.directory.manifest()

    @property
    def results(self) -> dict[str, Any]:
        """The figures of a finished run: loss, validation loss before and after, seconds, memory, parameters."""
        results = self.manifest.results
        if results is None:
            raise RunError(f'run "{self.name}" is not finished (its status is {self.manifest.status}).')
        return results.model_dump()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the metrics log in their order; `kind` says what a record is (docs/runs.md)."""
        path = self.directory.metrics
        return [row for row in read_metrics_log(path) if isinstance(row, dict)] if path.exists() else []

    @property
    def report(self) -> Path:
        """The page that shows the whole run."""
        return self.directory.page

    @cached_property
    def tuned(self) -> TunedModel:
        """The tuned model with its base inside. It is loaded when it is first needed."""
        from rankwise.inference.tuned_model import load_tuned

        return load_tuned(str(self.folder), self._callback, **self._loading)

    @property
    def model(self) -> LoadedModel:
        """The tuned model, its tokenizer and its chat template."""
        return self.tuned.model

    @property
    def trainable(self) -> Trainable:
        """What learned; inside `with run.trainable.base():` the model is its untouched base."""
        return self.tuned.trainable

    def generate(self, prompt: str, *, system: str | None = None, base: bool = False, **settings: Any) -> str:
        """The answer to a prompt, from the tuned model or from its untouched base. `settings` are those of generation:
        max_new_tokens, temperature, top_p, seed, repetition_check."""
        from rankwise.commands.generate import generate

        generated = generate(self.tuned, prompt, GenerationConfig(**settings), system=system, base=base)
        answer = generated.base if base else generated.adapted
        assert answer is not None, "one of the two was asked for"
        return answer.text

    def plot(self) -> LossPlot:
        """The training loss of each step, and the validation loss where it was measured, in nats."""
        from rankwise.python.plot import loss_plot

        return loss_plot(self.metrics, self.name)


def load_run(
    name: str | Path, callback: Callback = silent, *, force_base: bool = False, force_result: bool = False,
    trust_code: str | None = None, base_model: str | None = None,
) -> Run:  # fmt: skip
    """A run by its name or its folder. The last four say how its model may be loaded: see `load_tuned`."""
    return Run(
        name, callback, force_base=force_base, force_result=force_result, trust_code=trust_code, base_model=base_model
    )
