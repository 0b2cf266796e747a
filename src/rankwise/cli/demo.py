"""`rankwise demo`: train on the data set that comes with rankwise, and show what the adapter learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet
from rankwise.reporting.quantities import size
from rankwise.system.allocator import keep_memory

if TYPE_CHECKING:
    from rankwise.commands.demo import Demo

SHOWN = 3


def demo(
    model: Annotated[str, typer.Option(help="Starter name, hub id, folder or .gguf file.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model on customer messages, and show its answers before and after training."""
    with report_failures(as_json):
        from rankwise.commands.demo import demo as demo_command

        keep_memory()
        with Display(quiet) as display:
            shown = demo_command(model, callback=display, seed=seed)
        print_result(as_json, shown.summary(), *_lines(shown))


def _lines(shown: Demo) -> list[str]:
    facts = shown.summary()
    rows = [
        f"\nmessage  {row.message}\nexpected {row.expected}\n"
        f"base     {_one_line(row.base)}\nadapted  {_one_line(row.adapted)}"
        for row in shown.rows[:SHOWN]
    ]
    share = facts["trainable_parameters"] / facts["total_parameters"]
    return [
        *rows,
        f"\nexact answers to {len(shown.rows)} messages with names, products and numbers that were not in the "
        "training rows:\n"
        f"  base model     {shown.base_exact:.0%}\n  with adapter   {shown.adapted_exact:.0%}\n"
        f"trained {facts['trainable_parameters']:,} parameters ({share:.2%} of {facts['total_parameters']:,}), "
        f"adapter {size(facts['adapter_bytes'])}\n"
        f"training took {facts['train_seconds']:.0f} s at {facts['tokens_per_second']:,.0f} tokens/s; "
        f"peak memory {size(facts['peak_rss_bytes'])}\n\n"
        f"next: rankwise chat {shown.run} --both\n"
        "      rankwise train --model smollm2-135m --data yours.jsonl --run my-first",
    ]


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 110 else f"{flat[:107]}..."
