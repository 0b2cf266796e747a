"""`rankwise evaluate`: what a run, or a model, is worth on a task, how sure that is, and what was forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, TrustCode
from rankwise.cli.visible import visible
from rankwise.system.allocator import keep_memory

if TYPE_CHECKING:
    from rankwise.runs.evaluations import Evaluation


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", show_default=False,
        help="A run (its name or folder), a PEFT adapter's folder, or a model as --model takes it.")],
    task: Annotated[str | None, typer.Option(show_default=False,
        help="A built-in task, a YAML file, or a file of rows.  [default: the rows that the run held out]")] = None,
    data: Annotated[str | None, typer.Option(show_default=False, help="Where the task's rows are.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, show_default=False,
        help="Draw this many rows by the task's seed; of an lm-eval task, the first rows.")] = None,
    against: Annotated[str | None, typer.Option(show_default=False,
        help="Model to compare with, such as the base of a merged model. A run is compared with its own base.")] = None,
    base: Annotated[bool, typer.Option(help="Evaluate the run's base too.")] = True,
    forgetting: Annotated[bool, typer.Option(help="Measure forgetting on text that was not in the data.")] = True,
    text: Annotated[str | None, typer.Option(show_default=False,
        help="Text to measure forgetting on: a file, or rows with a text.  [default: Python's documentation]")] = None,
    blocks: Annotated[int | None, typer.Option(min=1, show_default=False,
        help="Measure forgetting on exactly this many blocks of 512 tokens.  [default: 8, 16 or 32, as needed]",
    )] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default=False,
        help="Most answers to write at once.  [default: 64; for an lm-eval task 16]")] = None,
    dtype: Annotated[str, typer.Option(
        help="float32, bfloat16, or auto: float32 on a processor, where answers do not depend on the batch.")] = "auto",
    out: Annotated[Path | None, typer.Option(show_default=False,
        help="Where to write the result.  [default: the run's folder]")] = None,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Score a run and its base, or a model."""
    with failures_told(as_json):
        from rankwise.commands.evaluate import evaluate as evaluate_verb

        keep_memory()
        with Display(quiet) as display:
            found = evaluate_verb(
                target, task, data=data, rows=rows, against=against, base=base,
                with_forgetting=forgetting, text=text, blocks=blocks, together=batch_size, dtype=dtype,
                out=out, callback=display, force_base=force_base, force_result=force_result, trust_code=trust_code,
                base_model=base_model,
            )  # fmt: skip
        if as_json:
            print_json(found.summary())
        else:
            typer.echo(visible("\n".join([*_told(found), *_cautions(target, found)])))


def _told(found: Evaluation) -> list[str]:
    from rankwise.config.tasks import MEANINGS
    from rankwise.runs.score_text import labels_text, measured_text, verdict_text

    lines = [f"{found.task}, {found.n:,} items of {found.data}, intervals of 95 %"]
    width = max(map(len, found.tuned.metrics))
    for metric, measured in found.tuned.metrics.items():
        line = f"  {metric:<{width}}  {measured_text(measured)}"
        if metric in found.differences:
            line += f"   base {found.differences[metric].a:.4g}: {verdict_text(found.differences[metric])}"
        lines.append(line)
    lines += [f"  {metric}: {MEANINGS[metric]}" for metric in found.tuned.metrics if metric in MEANINGS]
    if found.labels:
        lines.append(labels_text(found.labels))
    if (kept := found.forgetting) is not None:
        lines.append(
            f"forgetting on {kept.measured_on}: KL(base || tuned) {kept.kl:.4f} nats per token "
            f"({kept.low:.4f} to {kept.high:.4f}); the text's tokens {kept.delta_nll:+.4f} nats less likely "
            f"({kept.delta_nll_low:+.4f} to {kept.delta_nll_high:+.4f}); same likeliest token at {kept.agreement:.1%}"
        )
    return lines


def _cautions(target: str, found: Evaluation) -> list[str]:
    from rankwise.runs.directory import find_run
    from rankwise.runs.warnings import HELD_OUT, cautions, of_overlap

    run = find_run(target)
    if run is None:
        return cautions(found, None, None)
    shared = of_overlap(run.data_report()) if found.task == HELD_OUT else ""
    return [*([shared] if shared else []), *cautions(found, run.experiment(), run.manifest().results)]
