"""`rankwise classify`: a classifier out of a table in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet, argument, option, starters
from rankwise.system.memory import keep_memory

if TYPE_CHECKING:
    from rankwise.commands.classify import Classified


def classify(
    data: Annotated[str, argument("File with the rows: CSV, Excel, JSON or Parquet.")],
    text: Annotated[str, option("Column with the texts.")],
    label: Annotated[str, option("Column with the labels.")],
    model: Annotated[str, option("Starter name, Hugging Face id or folder.", autocompletion=starters)] = "minilm",
    run: Annotated[str | None, option("Prefix of the run names.  [default: the file name]")] = None,
    seed: Annotated[int, option("Seed for choosing validation rows and for training.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a text classifier in one command: check the rows, fit a linear probe, try LoRA, and keep the better one."""
    with report_failures(as_json):
        _check(data, {"text": text, "label": label}, run)
        from rankwise.commands.classify import classify as classify_command

        keep_memory()
        with Display(quiet) as display:
            classified = classify_command(data, text, label, model=model, run=run, seed=seed, callback=display)
        print_result(as_json, classified.summary(), *_lines(classified))


def _check(data: str, columns: dict[str, str], run: str | None) -> None:
    """Refuse what the file and the runs show before torch is loaded: a missing column or extra, and a taken name."""
    from rankwise.commands.plan import refuse_columns
    from rankwise.runs.directory import RunDirectory

    refuse_columns(data, columns)
    for way in ("probe", "adapter") if run else ():
        with RunDirectory.named(f"{run}-{way}").claimed(restart=False):
            pass


def _lines(classified: Classified) -> list[str]:
    from rankwise.reporting.document import facts
    from rankwise.reporting.markup import lines_of

    rows, kept, runs = classified.rows, classified.better, classified.runs
    scores = {name: f"accuracy {score.shown('.1%')}" for name, score in classified.scores.items()}
    gain, words = classified.gain, classified.words
    behind = words is not None and words > classified.scores[kept].value
    why = "no adapter was trained, since a short training gave no lower loss than the probe" if gain is None else (
        f"the adapter's accuracy less the probe's is {100 * gain.difference:+.1f} points ({100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f})"
    )  # fmt: skip
    return lines_of(facts([
        ("rows", f"{rows.used:,}, of which {rows.validation_rows:,} were held out for the scores"),
        *(("warning", warning) for warning in rows.warnings),
        *scores.items(),
        *([] if words is None else [("words alone", f"accuracy {words:.1%} (logistic regression on TF-IDF)")]),
        *([("warning", "words alone are right more often: rankwise.sklearn.TextClassifier reads them too")] * behind),
        ("kept", f"{kept}: {why}"),
        ("report", str(runs[kept].run.page)),
        ("next", f"rankwise {runs[kept].use.format(run=runs[kept].run.folder.name)}"),
    ]))  # fmt: skip
