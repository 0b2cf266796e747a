"""A run as a Python object: its results and metrics as plain values, a plot, and answers from the tuned model.

run = rankwise.load_run("first")
run.metrics[-1]         # records of the metrics log, which a pandas DataFrame takes as they are
run.plot()              # a matplotlib figure that a notebook shows
run.generate("Hello")   # the model is loaded at the first call and stays loaded
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.config.generation import GenerationConfig
from rankwise.errors import ConfigError, DataError, RunError, joined_problems
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import Callback, silent
from rankwise.runs.snapshot import RunSnapshot

if TYPE_CHECKING:
    from rankwise.base.loaded import LoadedModel
    from rankwise.inference.tuned_model import TunedModel
    from rankwise.methods.trainable import Trainable
    from rankwise.python.plot import LossPlot


class Run:
    """A run, finished or not; `load_run` opens one."""

    def __init__(
        self, snapshot: RunSnapshot, callback: Callback = silent, tuned: TunedModel | None = None, **loading: Any
    ) -> None:
        self.snapshot, self._callback, self._loading = snapshot, callback, loading
        if tuned is not None:
            self.__dict__["tuned"] = tuned

    def __repr__(self) -> str:
        return f"<rankwise run {self.name!r}, {self.manifest.status}, {self.folder}>"

    @property
    def name(self) -> str:
        return self.snapshot.name

    @property
    def folder(self) -> Path:
        return self.snapshot.folder

    @property
    def manifest(self) -> Manifest:
        """Versions, machine, hashes, results and warnings of the run, as they were when it was opened."""
        return self.snapshot.manifest

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
        path = self.snapshot.directory.metrics
        return [row for row in read_metrics_log(path) if isinstance(row, dict)] if path.exists() else []

    @property
    def report(self) -> Path:
        """The page that shows the whole run."""
        return self.snapshot.directory.page

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

    def generate(
        self, prompt: str, *, system: str | None = None, base: bool = False, schema: Any = None, **settings: Any
    ) -> str:
        """The answer to a prompt, from the tuned model or from its untouched base. `schema` is a JSON Schema or a class
        of pydantic that the answer is held to. `settings` are those of generation: max_new_tokens, temperature, top_p,
        seed, repetition_check, constraint ("none" lifts that of the run)."""
        from rankwise.commands.generate import generate

        if schema is not None:
            from rankwise.constraints.constraint import constraint_given

            if "constraint" in settings:
                raise ConfigError(["schema and constraint both say what the answer may be; give one of them."])
            settings["constraint"] = constraint_given(schema)
        generated = generate(self.tuned, prompt, GenerationConfig(**settings), system=system, base=base)
        answer = generated.base if base else generated.adapted
        assert answer is not None, "one of the two was asked for"
        return answer.text

    def predict(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """What a classifier predicts for each text, pair of texts or image: {"label": …, "probabilities": {label: …}},
        or {"value": …} where it predicts numbers; {"spans": […], "tags": […]} of a token classifier, for a text or a
        list of words, which are joined by spaces. An image is a path, the bytes of a file, a picture of Pillow or a
        uint8 array. RunError where the run is a language model. DataError where an image cannot be read, or a text has
        more tokens than a row of the run may have, unless the run was trained with data.too_long=truncate."""
        from rankwise.python.items import READERS

        predicted, problems = self.tuned.predict(self.tuned.classifier.among(READERS)(items))
        if problems:
            raise DataError(joined_problems([*problems.values()]))
        return [one.as_values() for one in predicted.values()]

    def plot(self) -> LossPlot:
        """The training loss of each step, and the validation loss where it was measured, in nats."""
        from rankwise.python.plot import loss_plot

        return loss_plot(self.metrics, self.name)


def load_run(name: str | Path, callback: Callback = silent, **loading: Any) -> Run:
    """A run by its name or its folder; RunError where there is none. `loading` says how its model may be loaded:
    force_base, force_result, trust_code and base_model, as `load_tuned` takes them."""
    return Run(RunSnapshot.read(str(name)), callback, **loading)
