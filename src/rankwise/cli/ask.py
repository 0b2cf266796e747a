"""`rankwise generate`, `rankwise chat` and `rankwise predict`: one prompt, a conversation, or every row of a file,
answered by a run's model, its base model, or both.
"""

from __future__ import annotations

import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.conversing import converse, not_utf8, remark, speak, tell_repetition
from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    AnswerOptions,
    Base,
    Both,
    Json,
    OpeningOptions,
    Quiet,
    RunName,
    System,
    option,
    takes_groups,
)
from rankwise.errors import ConfigError, some

if TYPE_CHECKING:
    from rankwise.commands.predict import Predicted

AT_LENGTH = AnswerOptions(max_new_tokens=512)


@takes_groups
def generate(
    run: RunName,
    prompt: Annotated[str, option("The prompt. Use - to read it from stdin.")],
    base: Base = False,
    both: Both = False,
    system: System = None,
    context: Annotated[str, option("Additional input for the prompt (Alpaca's `input` field).")] = "",
    *,
    answering: AnswerOptions,
    opening: OpeningOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate one answer with a tuned model."""
    with report_failures(as_json):
        text = _stdin() if prompt == "-" else prompt
        from rankwise.commands.generate import generate as generate_command

        streamed = not as_json and not both
        with Display(quiet) as display:
            generated = generate_command(
                run, text, answering.config, system=system, context=context, base=base, both=both, callback=display,
                on_text=speak if streamed else None, **vars(opening),
            )  # fmt: skip
        if as_json:
            print_json(generated.summary())
        elif streamed:
            typer.echo()
        else:
            assert generated.adapted is not None and generated.base is not None, "--both returns both answers"
            typer.echo(f"adapted: {generated.adapted.text}\nbase:    {generated.base.text}")
        for side, given in (("adapted: ", generated.adapted), ("base: ", generated.base)):
            if given is not None:
                tell_repetition(given.stopped, side if both else "")


@takes_groups
def chat(
    run: RunName,
    base: Base = False,
    both: Both = False,
    system: System = None,
    *,
    answering: AnswerOptions = AT_LENGTH,
    opening: OpeningOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Chat with a tuned model in the terminal. Each line is a message; empty lines are skipped.

    To send several lines as one message, paste them on a terminal or put them between two lines of \"\"\".
    Commands: /new starts a new conversation; /system shows the system message, /system TEXT sets it and /system none
    removes it; /help lists the commands; /quit, Ctrl-D or Ctrl-C ends the chat.
    """
    with report_failures(as_json):
        from rankwise.commands.generate import Chat, load_tuned

        with Display(quiet) as display:
            asked = load_tuned(run, display, **vars(opening))
        talk = Chat.begin(asked, answering.config, base=base, both=both, system=system)
        interrupted = converse(talk, aloud=not as_json)
        if as_json:
            print_json({"run": run, "turns": talk.turns()})
        if interrupted:
            raise typer.Exit(130)


def _stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")  # `echo` adds a line end that is not part of the prompt
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None


@takes_groups
def predict(
    run: RunName,
    data: Annotated[
        str | None, option("Rows to answer: a file, a folder or hub:NAME. Use - to read JSON Lines or CSV from stdin.")
    ] = None,
    text: Annotated[
        list[str] | None, option("A text to answer, instead of rows. Can be repeated. Use - to read it from stdin.")
    ] = None,
    out: Annotated[
        Path | None,
        option("File to write: .jsonl, .csv, .tsv or .xlsx.  [default: print the answers]"),
    ] = None,
    rows: Annotated[int | None, option("Answer only the first rows, this many.  [default: all]", min=1)] = None,
    prompt: Annotated[
        str | None,
        option("Prompt template with column names in braces: 'Summarise: {dialogue}'.  [default: as in training]"),
    ] = None,
    system: System = None,
    column: Annotated[str, option("Name of the column to write the answers to.")] = "prediction",
    base: Base = False,
    *,
    answering: AnswerOptions,
    batch_size: Annotated[int, option("Number of rows to process at once.", min=1)] = 64,
    on_bad_row: Annotated[
        str,
        option(
            "What to do with unusable rows. stop: end with an error. skip: write the reason to a column named error.",
            autocompletion=lambda: ["stop", "skip"],
        ),
    ] = "stop",
    overwrite: Annotated[bool, option("Overwrite an existing file.", "--overwrite")] = False,
    opening: OpeningOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer every row of a file and write the rows with their answers, or answer single texts.

    Rows are read like the training rows, but need no answer. All columns are kept in order. A CSV file keeps its
    separator and encoding; an Excel workbook gets new columns.
    """
    with report_failures(as_json):
        if on_bad_row not in ("stop", "skip"):
            raise ConfigError([f'--on-bad-row "{on_bad_row}": use stop or skip.'])
        from rankwise.commands.predict import predict as predict_command

        texts = [_stdin() if one == "-" else one for one in text or ()]
        with Display(quiet) as display, _rows_given(data) as given:
            predicted = predict_command(
                run, given, out, answering.config, texts=texts, most=rows, prompt=prompt, system=system,
                column=column, base=base,
                batch_size=batch_size, skip_bad_rows=on_bad_row == "skip", overwrite=overwrite, callback=display,
                **vars(opening),
            )  # fmt: skip
        if as_json:
            print_json(predicted.summary())
        elif text:
            typer.echo("\n".join(row.as_text() for row in predicted.rows))
        elif out is None:
            typer.echo(predicted.lines, nl=False)
        if not as_json:
            _remark(predicted)


@contextmanager
def _rows_given(data: str | None) -> Iterator[str | None]:
    """A path, or with - the rows on stdin as a file."""
    if data != "-":
        yield data
        return
    content = sys.stdin.buffer.read()
    suffix = ".jsonl" if content.removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"[") else ".csv"
    with TemporaryDirectory() as folder:
        path = Path(folder, f"stdin{suffix}")
        path.write_bytes(content)
        yield str(path)


def _remark(predicted: Predicted) -> None:
    """What a reader of the answers should know: in a line on stderr, where they are printed."""
    facts = predicted.summary()
    what = "classified" if predicted.classified else "answered"
    tokens = "" if predicted.classified else f", {facts['tokens']:,} tokens"
    if predicted.out is not None:
        typer.echo(
            f"{predicted.out}: {facts['answered']:,} of {facts['rows']:,} rows {what}{tokens} in "
            f"{facts['seconds']:.1f} s"
        )
    if bad := len(facts["errors"]):
        remark(f'{bad:,} row{"s" * (bad > 1)} could not be {what}; the column "error" says why.')
    if predicted.repeated:
        remark(f"[stopped: the answer repeats itself] in {some(predicted.repeated, 8)}")
    if cut := facts["stopped"].get("length"):
        remark(f"{cut:,} answers reached --max-new-tokens and were cut.")
