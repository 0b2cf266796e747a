"""A run as a Python object: its results and metrics as plain values, a plot, and answers from the tuned model.

run = rankwise.load_run("first")
run.metrics[-1]         # records of the metrics log, which a pandas DataFrame takes as they are
run.plot()              # a matplotlib figure that a notebook shows
run.generate("Hello")   # the model is loaded at the first call and stays loaded
run.predict(table)      # a DataFrame with the answers beside its columns
run.evaluate(table).to_frame()
run.export("folder", "merged")

The functions of the package take a run wherever they take a name, since its path is that of its folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.config.validation import GenerationConfig
from rankwise.errors import ConfigError, RunError
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import Callback, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.extras import need_extra

if TYPE_CHECKING:
    from rankwise.base.loaded import LoadedModel
    from rankwise.commands.export import Exported
    from rankwise.inference.tuned_model import TunedModel
    from rankwise.methods.trainable import Trainable
    from rankwise.python.plot import LossPlot
    from rankwise.runs.evaluations import Evaluation


class Run:
    """A training run, finished or not. Open one with `load_run`."""

    def __init__(
        self, snapshot: RunSnapshot, callback: Callback = silent, tuned: TunedModel | None = None, **loading: Any
    ) -> None:
        self.snapshot, self._callback, self._loading = snapshot, callback, loading
        if tuned is not None:
            self.__dict__["tuned"] = tuned

    def __fspath__(self) -> str:
        return str(self.folder)

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
        """The run's manifest when it was opened: versions, machine, hashes, results and warnings."""
        return self.snapshot.manifest

    @property
    def results(self) -> dict[str, Any]:
        """The results of a finished run: loss, validation loss before and after, seconds, memory, parameters."""
        results = self.manifest.results
        if results is None:
            raise RunError(f'run "{self.name}" is not finished (its status is {self.manifest.status}).')
        return results.model_dump()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the metrics log in order. `kind` says what a record is (docs/runs.md)."""
        path = self.snapshot.directory.metrics
        return [row for row in read_metrics_log(path) if isinstance(row, dict)] if path.exists() else []

    @property
    def report(self) -> Path:
        """The path of the run's report page."""
        return self.snapshot.directory.page

    @cached_property
    def tuned(self) -> TunedModel:
        """The tuned model with its base inside. It is loaded when it is first needed."""
        from rankwise.inference.tuned_model import load_tuned

        return load_tuned(str(self.folder), self._callback, **self._loading)

    @property
    def model(self) -> LoadedModel:
        """The tuned model, with its tokenizer and chat template."""
        return self.tuned.model

    @property
    def trainable(self) -> Trainable:
        """The trained part of the model. Inside `with run.trainable.base():` the model is its unchanged base."""
        return self.tuned.trainable

    def generate(
        self, prompt: Any, *, system: str | None = None, base: bool = False, schema: Any = None, **settings: Any
    ) -> Any:
        """Generate the answer to a prompt with the tuned model or its base model. A list of prompts returns a list of
        answers.

        A prompt is a string, or a conversation as a list of dicts with `role` and `content`. `schema` constrains the
        answer: a JSON Schema or a pydantic class. `settings` are max_new_tokens, temperature, top_p, seed,
        repetition_check and constraint ("none" turns off the run's own).
        """
        if isinstance(prompt, str):
            from rankwise.commands.generate import generate

            generated = generate(self.tuned, prompt, _generation(schema, settings), system=system, base=base)
            answer = generated.base if base else generated.adapted
            assert answer is not None, "one of the two was asked for"
            return answer.text
        self.tuned.artifact.refuse("generating")
        listed = isinstance(prompt, list | tuple)
        several = not (listed and prompt and isinstance(prompt[0], Mapping))
        spoken = prompt if several else [prompt]
        if listed:
            spoken = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in spoken]
        answers = [one["answer"] for one in self._answered(spoken, _generation(schema, settings), system, base=base)]
        return answers if several else answers[0]

    def predict(
        self, items: Any, *, system: str | None = None, base: bool = False, schema: Any = None,
        column: str = "prediction", **settings: Any,
    ) -> Any:  # fmt: skip
        """Predict the answer, class, number or tags for each item.

        A pandas DataFrame returns a DataFrame with the columns that `rankwise predict` appends. A list returns a list
        of dicts: {"label": …, "probability": …, "probabilities": {label: …}} for a classifier, {"value": …} for a
        regression model, {"spans": […], "tags": […]} for a token classifier, and {"answer": …, "stopped": …} for a
        language model.

        Items are texts, text pairs, lists of words (token classifier), conversations (lists of messages), or images (a
        path, the bytes of a file, a Pillow image or a uint8 array). A dict is a row with the columns of the training
        rows, and so is each row of a DataFrame. `settings` are those of `generate`. DataError lists all items that
        can't be read and all texts longer than the run's maximum length, unless it was trained with
        data.too_long=truncate.
        """
        from rankwise.commands.predict import predict

        config = _generation(schema, settings)
        table = hasattr(items, "columns") and hasattr(items, "assign")
        if table or _are_rows(items):
            done = predict(self.tuned, items, config=config, system=system, base=base, column=column,
                           skip_bad_rows=None, callback=self._callback)  # fmt: skip
            if not table:
                return [row.as_values() for row in done.rows]
            before = {*map(str, items.columns)}
            names = dict.fromkeys(name for record in done.records for name in record if name not in before)
            return items.assign(**{name: [record.get(name) for record in done.records] for name in names})
        return self._answered(items, config, system, base=base)

    def _answered(self, items: Any, config: GenerationConfig, system: str | None, *, base: bool) -> list[Any]:
        from rankwise.commands.predict import AnswerSettings, answer_items

        if isinstance(items, list | tuple) and not items:
            return []
        return [row.as_values() for row in answer_items(self.tuned, items, AnswerSettings(config, system, base))]

    def evaluate(self, data: Any = None, *, task: Any = None, score: Any = None, **options: Any) -> Evaluation:
        """Score the run and its base model, with confidence intervals, on rows that it wasn't trained on (a path, a
        DataFrame or a list of dicts). Without rows, its validation rows are used. `score` names metrics, or is a
        function that takes an answer and its reference and returns a number. `options` are those of
        `rankwise.evaluate`."""
        from rankwise.commands.evaluate import evaluate

        return evaluate(self, task, data=data, score=score, callback=self._callback, **options)

    def export(self, to: str | Path, format: str = "peft", **options: Any) -> Exported:
        """Export the adapter or model to the new folder `to`. `options` are those of `rankwise.export`."""
        from rankwise.commands.export import export

        return export(self, to, format, callback=self._callback, **options)

    def plot(self) -> LossPlot:
        """Plot the training loss of each step, and the validation loss if there is one, in nats."""
        need_extra("matplotlib", "a figure", "plot", RunError)
        from rankwise.python.plot import loss_plot

        return loss_plot(self.metrics, self.name)


def load_run(name: str | Path, callback: Callback = silent, **loading: Any) -> Run:
    """Open a run by name or folder. RunError if it doesn't exist. `loading` sets how its model may be loaded:
    force_base, force_result, trust_code and base_model, as for `load_tuned`."""
    return Run(RunSnapshot.read(os.fspath(name)), callback, **loading)


def _generation(schema: Any, settings: dict[str, Any]) -> GenerationConfig:
    if schema is not None:
        from rankwise.constraints.constraint import constraint_given

        if "constraint" in settings:
            raise ConfigError(["schema and constraint both say what the answer may be; give one of them."])
        settings = settings | {"constraint": constraint_given(schema)}
    return GenerationConfig(**settings)


def _are_rows(items: Any) -> bool:
    """A path, a `datasets.Dataset`, or dicts."""
    from rankwise.rows.files.files import SUFFIXES

    if isinstance(items, str):
        return items.lower().endswith(SUFFIXES) and os.path.exists(items)  # noqa: PTH110  Path raises at long texts
    if isinstance(items, os.PathLike) or hasattr(items, "features"):
        return True
    return isinstance(items, list | tuple) and bool(items) and all(isinstance(item, Mapping) for item in items)
