"""What a training brought: `rankwise evaluate` scores a run or a model on a task and measures forgetting, `rankwise
compare` compares evaluated runs item by item, `rankwise report` writes a page of a run or of several, and
`rankwise strength` measures gain and forgetting when the adapter's change is scaled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    ConstraintOptions,
    Json,
    OpeningOptions,
    Quiet,
    RunName,
    argument,
    option,
    runs_and_starters,
    separated,
    takes_groups,
)
from rankwise.config.tasks import BUILT_IN, Score
from rankwise.runs.listing import run_names
from rankwise.system.memory import keep_memory

if TYPE_CHECKING:
    from rankwise.commands.strength import Strengths
    from rankwise.runs.evaluations import Evaluation


@takes_groups
def evaluate(
    target: Annotated[str, argument(
        "A run (name or folder), a PEFT adapter folder, or a model (starter name, Hugging Face id, folder or file).",
        metavar="RUN|MODEL", autocompletion=runs_and_starters)],
    task: Annotated[str | None, option(
        "A built-in task, a YAML task file or a file with rows.  [default: the run's validation rows]",
        autocompletion=lambda: [*BUILT_IN])] = None,
    data: Annotated[str | None, option("File with rows for the task, or if there is none, like the run's.")] = None,
    score: Annotated[str | None, option(
        "Metrics, separated by commas: exact, json, rouge_l and others (docs/evaluation.md).  [default: the task's, or "
        "chosen by the answers]", autocompletion=separated(*get_args(Score)))] = None,
    rows: Annotated[int | None, option(
        "Number of rows to evaluate, sampled with the task's seed (lm-eval tasks: the first rows).  [default: all]",
        min=1)] = None,
    against: Annotated[str | None, option(
        "Model to compare with, such as a merged model's base. Runs are compared with their own base.")] = None,
    base: Annotated[bool, option("Also evaluate the run's base model.")] = True,
    forgetting: Annotated[bool, option("Measure forgetting: how much predictions on unrelated text changed.")] = True,
    text: Annotated[str | None, option(
        "Unrelated text to measure forgetting on: a text file, or rows with a text.  [default: Python's "
        "documentation]")] = None,
    other_images: Annotated[str | None, option(
        "Labelled images outside the training data, to measure an image classifier's forgetting on.")] = None,
    blocks: Annotated[int | None, option(
        "Number of blocks of 512 tokens to measure forgetting on.  [default: 8, 16 or 32, as needed]",
        min=1)] = None,
    batch_size: Annotated[int | None, option(
        "Number of answers to generate at once.  [default: 64; lm-eval tasks: 16]", min=1)] = None,
    dtype: Annotated[str, option(
        "Dtype: float32, bfloat16 or auto. On a CPU, auto is float32, so answers don't depend on the batch size.",
        autocompletion=lambda: ["auto", "float32", "bfloat16"])] = "auto",
    out: Annotated[Path | None, option(
        "File for the result (.json), or for a table with every answer and its scores (.jsonl, .csv, .tsv or .xlsx).  "
        "[default: the result goes to the run's folder]")] = None,
    *,
    constraining: ConstraintOptions,
    opening: OpeningOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Score a run against its base model on held-out rows or a task, with confidence intervals."""
    with report_failures(as_json):
        from rankwise.commands.evaluate import evaluate as evaluate_command

        keep_memory()
        with Display(quiet) as display:
            evaluation = evaluate_command(
                target, task, data=data, score=score, rows=rows, against=against, base=base,
                forgetting=forgetting, text=text, blocks=blocks, batch_size=batch_size, dtype=dtype,
                out=out, callback=display, images=other_images, constraint=constraining.constraint, **vars(opening),
            )  # fmt: skip
        print_result(as_json, evaluation.summary(), *_lines(evaluation), *_cautions(target, evaluation))


def _lines(evaluation: Evaluation) -> list[str]:
    from rankwise.reporting.classes import class_blocks, set_blocks
    from rankwise.reporting.markup import lines_of
    from rankwise.reporting.quality import feature_facts, field_blocks, forgetting_facts, scored
    from rankwise.runs.evaluations import labels_text

    tuned, about = evaluation.tuned, f"{evaluation.task}, {evaluation.n:,} items of {evaluation.data}"
    parts = (
        tuned.classification and class_blocks(tuned.classification), tuned.sets and set_blocks(tuned.sets),
        tuned.fields is not None and field_blocks(tuned.fields),
        evaluation.forgetting and forgetting_facts(evaluation.forgetting),
        evaluation.feature_forgetting and feature_facts(evaluation.feature_forgetting),
    )  # fmt: skip
    return [
        f"{about}, intervals of 95 %",
        *lines_of(scored([evaluation])),
        "What each score means: docs/evaluation.md, and metric_meanings in the output of --json.",
        *([labels_text(evaluation.labels)] if evaluation.labels else []),
        *(line for part in parts if part for line in ("", *lines_of(part))),
    ]


def _cautions(target: str, evaluation: Evaluation) -> list[str]:
    from rankwise.reporting.verdict import HELD_OUT, chosen_by_held_out, evaluation_warnings, of_overlap
    from rankwise.runs.directory import find_run
    from rankwise.runs.snapshot import RunSnapshot

    directory = find_run(target)
    if directory is None:
        return evaluation_warnings(evaluation, "")
    run = RunSnapshot.of(directory)
    shared = of_overlap(run.recorded_data) if evaluation.task == HELD_OUT else ""
    how = chosen_by_held_out(run.experiment.validation, run.manifest.results)
    return [*([shared] if shared else []), *evaluation_warnings(evaluation, how)]


def compare(
    runs: Annotated[
        list[str],
        argument(
            "The reference run, then the runs to compare with it: names, folders, or files written by evaluate --out.",
            autocompletion=run_names,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Compare evaluated runs: scores with confidence intervals, settings, data and cost."""
    with report_failures(as_json):
        from rankwise.commands.compare import compare as compare_command
        from rankwise.reporting.comparison import comparison_report

        compared = compare_command(runs)
        document = comparison_report(compared.candidates, compared.comparisons, drawn=False)
        print_result(as_json, compared.summary(), *document.lines())


def report(
    runs: Annotated[
        list[str],
        argument(
            "Runs (names or folders), finished or not. Several runs are compared with the first.",
            autocompletion=run_names,
        ),
    ],
    out: Annotated[
        Path | None,
        option("Page to write (FILE.html, plus FILE.json with the data).  [default: in the run's folder]"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a run's report as one self-contained HTML file, and as JSON."""
    with report_failures(as_json):
        from rankwise.commands.report import report as report_command

        written = report_command(runs, out)
        print_result(as_json, written, f"{written.verdict}\n{written.page}")


@takes_groups
def strength(
    run: RunName,
    text: Annotated[
        str | None,
        option(
            "Unrelated text to measure forgetting on: a text file, or rows with a text (file or "
            "hub:organisation/name).  [default: Python's documentation]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        option("Rows that the run wasn't trained on.  [default: the run's validation rows]"),
    ] = None,
    blocks: Annotated[int, option("Number of blocks of 512 tokens to measure forgetting on.")] = 16,
    *,
    opening: OpeningOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure gain and forgetting with the adapter scaled to several strengths, and recommend one."""
    with report_failures(as_json):
        from rankwise.commands.strength import strength as strength_command

        with Display(quiet) as display:
            measured = strength_command(
                run, text=text, data=data, blocks=blocks, callback=display, **vars(opening),
            )  # fmt: skip
        print_result(as_json, measured.summary(), *_strength_lines(measured), *_strength_cautions(measured))


def _strength_lines(strengths: Strengths) -> list[str]:
    from rankwise.reporting.markup import lines_of
    from rankwise.reporting.quality import strength_blocks

    run, strength = strengths.run, strengths.curve.recommended
    stored = f"written to {run}/strength.json; " if strengths.stored else ""
    following = f"next: rankwise export {run} --to FOLDER --strength {strength:g}" if strength else ""
    return [*lines_of(strength_blocks(strengths.curve)), stored + following]


def _strength_cautions(strengths: Strengths) -> list[str]:
    from rankwise.reporting.verdict import chosen_by_held_out, strength_warnings
    from rankwise.runs.directory import find_run
    from rankwise.runs.snapshot import RunSnapshot

    directory = find_run(strengths.run)
    if directory is None:  # the folder of an adapter has no records of its training
        return []
    run = RunSnapshot.of(directory)
    return strength_warnings(strengths.curve, chosen_by_held_out(run.experiment.validation, run.manifest.results))
