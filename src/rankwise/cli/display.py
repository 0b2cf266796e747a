"""Progress and warnings on stderr: a live line on a terminal, and a plain line every few seconds elsewhere.

Only results go to stdout, so that `--json` prints exactly one object there and a pipe receives only answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rankwise.cli.words import in_own_words, visible
from rankwise.config.base import Config
from rankwise.reporting.quantities import rough_duration, size
from rankwise.runs.records import (
    BudgetRecord,
    Event,
    LossRecord,
    ProgressUpdate,
    RankRecord,
    SampleRecord,
    ScoreRecord,
    StatusMessage,
    StepRecord,
    WarningMessage,
)

SECONDS_BETWEEN_LINES = 10.0
LONGEST_RANKS = 79
LONGEST_PROMPT, LONGEST_ANSWER = 40, 80


class Bar(Progress):
    """A progress line, with an optional second line below it."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")


class Display(AbstractContextManager["Display"]):
    """A callback for events. Use it as a context manager, which closes the live line even after an error."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._warnings = Console(stderr=True, highlight=False) if quiet else self._console
        self._progress = Bar(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=10),
            TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(compact=True), TextColumn("left"),
            console=self._console, transient=False,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._what = self._ranks = ""
        self._scores: list[ScoreRecord] = []
        self._began = self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        match event:
            case StatusMessage(text):
                self._close()
                self._console.print(in_own_words(text), markup=False, soft_wrap=True)
            case WarningMessage(text):
                self._warnings.print(f"warning: {in_own_words(text)}", markup=False, soft_wrap=True)
            case ScoreRecord():  # the loss of the same validation follows
                self._scores.append(event)
            case LossRecord():
                self._above(validation_line(event, self._scores))
                self._scores = []
            case BudgetRecord():
                self._above(
                    f"forgetting after step {event.step}: {event.divergence:.4f} nats per token of ordinary text; the "
                    f"anchor's weight is {event.weight:.3g} from here on"
                )
            case SampleRecord():
                self._above(sampled(event))
            case ProgressUpdate():
                self._show(event.what, event.done, event.total, _amount(event))
            case StepRecord():
                self._progress.below = f"  {self._ranks}" if self._ranks else ""
                ranks = f"  {self._ranks}" if self._ranks and not self._live else ""
                self._show("Training", event.step, event.steps, _facts(event) + ranks)
            case RankRecord():
                self._ranks = rank_line(event, min(LONGEST_RANKS, self._console.width) - 3)
                if event.final and event.step:  # EVA reports its ranks itself, at step 0
                    self._above(event.describe())

    def _above(self, text: str) -> None:
        """Print a line above the live line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _show(self, what: str, done: float, total: float, facts: str) -> None:
        if what != self._what:
            self._close()
            self._what, self._began, self._last_line = what, time.monotonic(), 0.0
            if self._live:
                self._progress.start()
                self._task = self._progress.add_task(what, total=total, facts=facts)
        if self._task is not None:
            self._progress.update(self._task, completed=done, facts=facts)
        elif not self._live:
            self._line(what, done, total, facts)
        if done >= total:
            self._close()

    def _line(self, what: str, done: float, total: float, facts: str) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and done < total:
            return
        self._last_line = now
        spent = now - self._began
        left = f", {rough_duration(spent * (total - done) / done)} left" if 0 < done < total and spent > 1 else ""
        share = done / total if total else 1.0
        self._console.print(f"{what} {share:.0%}  {facts}{left}", markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self._task is not None:
            self._progress.refresh()
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._progress.below = ""
            self._task = None
        self._what = ""


def _facts(record: StepRecord) -> str:
    anchor = "" if record.divergence is None else f"  KL to the base {record.divergence:.3f}"
    if record.margin is not None:
        anchor += f"  margin {record.margin:.3f}"
    return (
        f"{record.step}/{record.steps}  loss {record.loss:.3f}{anchor}  {record.speed}  {size(record.resident_bytes)}"
    )


def validation_line(record: LossRecord, scores: Sequence[ScoreRecord]) -> str:
    """One validation on one line."""
    line = f"validation loss {_when(record.step)}: {record.loss:.4f} {record.unit} ({record.sequences} sequences)"
    listed = ", ".join(f"{one.metric} {one.value:.3f}" for one in scores)
    return f"{line}; {listed} ({scores[0].n} rows)" if scores else line


def sampled(record: SampleRecord) -> str:
    """The end of the prompt and the beginning of the answer."""
    prompt, answer = (" ".join(visible(text).split()) for text in (record.prompt, record.answer))
    prompt = prompt if len(prompt) <= LONGEST_PROMPT else f"…{prompt[1 - LONGEST_PROMPT :]}"
    answer = answer if len(answer) <= LONGEST_ANSWER else f"{answer[: LONGEST_ANSWER - 1]}…"
    return f'answer {_when(record.step)}: "{prompt}" -> "{answer}"'


def _when(step: int) -> str:
    return "before training" if step == 0 else f"after step {step}"


def rank_line(record: RankRecord, room: int) -> str:
    """Budget, mean rank, and the kinds of layers with the largest shares of the ranks, as far as there is room."""
    line = f"budget {record.budget:,} of {record.of:,} {record.unit}, mean rank {record.mean_rank:.1f}"
    before = ": "
    for kind, share in _shares(record):
        part = f"{before}{kind} {share:.0%}"
        if len(line) + len(part) > room:
            break
        line, before = line + part, ", "
    return line


def _shares(record: RankRecord) -> list[tuple[str, float]]:
    """Each kind of layer (the last name of its path) and its share of all ranks, the largest first."""
    counts: Counter[str] = Counter()
    for path, rank in record.ranks.items():
        counts[visible(path.rpartition(".")[2]).replace("\n", " ").replace("\t", " ")] += rank
    total = sum(counts.values())
    return [(kind, rank / total) for kind, rank in counts.most_common() if rank > 0]


def _amount(event: ProgressUpdate) -> str:
    if event.unit == "bytes":
        return f"{size(event.done)} of {size(event.total)}"
    return f"{event.done:,.0f} of {event.total:,.0f} {event.unit}"


def print_json(value: Any) -> None:
    """A value of a command, or a dictionary with such values."""
    text = json.dumps(value, ensure_ascii=False, default=_jsonable)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a lone surrogate, or a terminal with a small character set
        text = json.dumps(value, default=_jsonable)
    sys.stdout.write(text + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    return {one.name: vars(value)[one.name] for one in fields(value)}  # without what a property has cached


def print_result(as_json: bool, value: Any, *lines: str) -> None:
    if as_json:
        print_json(value)
    else:
        print(visible("\n".join(lines)))
