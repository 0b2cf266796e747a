"""`rankwise predict`: answer every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.conversing import remark
from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    Base,
    BaseModel,
    ForceBase,
    ForceResult,
    Json,
    MaxNewTokens,
    Quiet,
    RepetitionCheck,
    RunName,
    Seed,
    System,
    Temperature,
    TopP,
    TrustCode,
    option,
)
from rankwise.config.generation import GenerationConfig
from rankwise.errors import ConfigError, some

if TYPE_CHECKING:
    from rankwise.commands.predict import Predicted


def predict(
    run: RunName,
    data: Annotated[str, option("Rows to answer: a file, a folder, or hub:NAME.")],
    out: Annotated[Path, option("File to write: .jsonl or .csv.")],
    prompt: Annotated[
        str | None,
        option("The prompt, with column names in braces: 'Summarise: {dialogue}'.  [default: as in training]"),
    ] = None,
    system: System = None,
    column: Annotated[str, typer.Option(help="Name of the column for the answers.")] = "prediction",
    base: Base = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    repetition_check: RepetitionCheck = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of rows to answer at once.")] = 64,
    on_bad_row: Annotated[
        str,
        typer.Option(
            help="stop: end with an error at a row that cannot be used; skip: write the problem into a column `error`."
        ),
    ] = "stop",
    overwrite: Annotated[bool, option("Replace an existing file.", "--overwrite")] = False,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer every row of a file, and write the rows with their answers.

    Rows are read in the same way as the training rows and need no answer. All columns are kept in their order.
    """
    with report_failures(as_json):
        if on_bad_row not in ("stop", "skip"):
            raise ConfigError([f'--on-bad-row "{on_bad_row}": use stop or skip.'])
        spec = GenerationConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
            repetition_check=repetition_check,
        )  # fmt: skip
        from rankwise.commands.predict import predict as predict_command

        with Display(quiet) as display:
            predicted = predict_command(
                run, data, out, spec, prompt=prompt, system=system, column=column, base=base, batch_size=batch_size,
                skip_bad_rows=on_bad_row == "skip", overwrite=overwrite, callback=display,
                force_base=force_base, force_result=force_result, trust_code=trust_code, base_model=base_model,
            )  # fmt: skip
        if as_json:
            print_json(predicted.summary())
        else:
            _print(predicted)


def _print(predicted: Predicted) -> None:
    facts = predicted.summary()
    what = "classified" if predicted.classified else "answered"
    tokens = "" if predicted.classified else f", {facts['tokens']:,} tokens"
    typer.echo(
        f"{facts['out']}: {facts['answered']:,} of {facts['rows']:,} rows {what}{tokens} in {facts['seconds']:.1f} s"
    )
    if bad := len(facts["errors"]):
        remark(f'{bad:,} row{"s" * (bad > 1)} could not be {what}; the column "error" says why.')
    if predicted.repeated:
        remark(f"[stopped: the answer repeats itself] in {some(predicted.repeated, 8)}")
    if cut := facts["stopped"].get("length"):
        remark(f"{cut:,} answers reached --max-new-tokens and were cut.")
