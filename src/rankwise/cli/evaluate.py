"""`rankwise evaluate`: score a run or a model on a task, with confidence intervals, and measure forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, TrustCode, argument, option
from rankwise.system.allocator import keep_memory

if TYPE_CHECKING:
    from rankwise.runs.evaluations import Evaluation


def evaluate(
    target: Annotated[str, argument(
        "A run (its name or folder), a PEFT adapter's folder, or a model as --model takes it.", metavar="RUN|MODEL")],
    task: Annotated[str | None, option(
        "A built-in task, a YAML file, or a file of rows.  [default: the validation rows of the run]")] = None,
    data: Annotated[str | None, option("File of the task's rows.")] = None,
    rows: Annotated[int | None, option(
        "Number of rows, drawn by the task's seed; for an lm-eval task, the first rows.  [default: all]",
        min=1)] = None,
    against: Annotated[str | None, option(
        "Model to compare with, such as the base of a merged model. A run is compared with its own base.")] = None,
    base: Annotated[bool, typer.Option(help="Evaluate the run's base model too.")] = True,
    forgetting: Annotated[bool, typer.Option(
        help="Measure forgetting: how predictions on unrelated text changed.")] = True,
    text: Annotated[str | None, option(
        "Text to measure forgetting on: a file, or rows with a text.  [default: Python's documentation]")] = None,
    other_images: Annotated[str | None, option(
        "Labelled images that are not training data, to measure forgetting of a model of images on.")] = None,
    blocks: Annotated[int | None, option(
        "Measure forgetting on exactly this many blocks of 512 tokens.  [default: 8, 16 or 32, as needed]",
        min=1)] = None,
    batch_size: Annotated[int | None, option(
        "Number of answers to generate at once.  [default: 64; for an lm-eval task 16]", min=1)] = None,
    dtype: Annotated[str, typer.Option(
        help="Number format: float32, bfloat16, or auto. auto is float32 on a CPU, where answers then do not depend on "
        "the batch size.")] = "auto",
    out: Annotated[Path | None, option("File for the result.  [default: in the run's folder]")] = None,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Score a run and its base model on a task, or a single model."""
    with report_failures(as_json):
        from rankwise.commands.evaluate import evaluate as evaluate_command

        keep_memory()
        with Display(quiet) as display:
            evaluation = evaluate_command(
                target, task, data=data, rows=rows, against=against, base=base,
                with_forgetting=forgetting, text=text, blocks=blocks, together=batch_size, dtype=dtype,
                out=out, callback=display, force_base=force_base, force_result=force_result, trust_code=trust_code,
                base_model=base_model, images=other_images,
            )  # fmt: skip
        print_result(as_json, evaluation.summary(), *_lines(evaluation), *_cautions(target, evaluation))


def _lines(evaluation: Evaluation) -> list[str]:
    from rankwise.config.tasks import MEANINGS
    from rankwise.reporting.classes import class_blocks, set_blocks
    from rankwise.reporting.markup import lines_of
    from rankwise.reporting.quality import feature_facts, forgetting_facts, scored
    from rankwise.runs.score_text import labels_text

    tuned, about = evaluation.tuned, f"{evaluation.task}, {evaluation.n:,} items of {evaluation.data}"
    parts = (
        tuned.classification and class_blocks(tuned.classification), tuned.sets and set_blocks(tuned.sets),
        evaluation.forgetting and forgetting_facts(evaluation.forgetting),
        evaluation.feature_forgetting and feature_facts(evaluation.feature_forgetting),
    )  # fmt: skip
    return [
        f"{about}, intervals of 95 %",
        *lines_of(scored([evaluation])),
        *(f"{metric}: {MEANINGS[metric]}" for metric in tuned.metrics if metric in MEANINGS),
        *([labels_text(evaluation.labels)] if evaluation.labels else []),
        *(line for part in parts if part for line in ("", *lines_of(part))),
    ]


def _cautions(target: str, evaluation: Evaluation) -> list[str]:
    from rankwise.reporting.verdict import HELD_OUT, evaluation_warnings, of_overlap
    from rankwise.runs.directory import find_run
    from rankwise.runs.snapshot import RunSnapshot

    directory = find_run(target)
    if directory is None:
        return evaluation_warnings(evaluation, None, None)
    run = RunSnapshot.of(directory)
    shared = of_overlap(run.recorded_data) if evaluation.task == HELD_OUT else ""
    return [*([shared] if shared else []), *evaluation_warnings(evaluation, run.experiment, run.manifest.results)]
