"""`rankwise generate` and `rankwise chat`: prompt a run's model, its base model, or both."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rankwise.cli.conversing import converse, not_utf8, speak, tell_repetition
from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    Base,
    BaseModel,
    Both,
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


def generate(
    run: RunName,
    prompt: Annotated[str, option("The prompt. - reads it from stdin.")],
    base: Base = False,
    both: Both = False,
    system: System = None,
    context: Annotated[str, option("Input that belongs to the prompt (Alpaca's input).")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    repetition_check: RepetitionCheck = True,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate one answer with a run's model."""
    with report_failures(as_json):
        spec = GenerationConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
            repetition_check=repetition_check,
        )  # fmt: skip
        text = _stdin() if prompt == "-" else prompt
        from rankwise.commands.generate import generate as generate_command

        streamed = not as_json and not both
        with Display(quiet) as display:
            generated = generate_command(
                run, text, spec, system=system, context=context, base=base, both=both, callback=display,
                force_base=force_base, force_result=force_result, trust_code=trust_code, base_model=base_model,
                on_text=speak if streamed else None,
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


def chat(
    run: RunName,
    base: Base = False,
    both: Both = False,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    repetition_check: RepetitionCheck = True,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Chat with a run's model. Each line is a message; empty lines are skipped.

    To send several lines as one message, paste them on a terminal or put them between two lines of \"\"\".
    Commands: /new starts a new conversation; /system shows the system message, /system TEXT sets it and /system none
    removes it; /help lists the commands; /quit, Ctrl-D or Ctrl-C ends.
    """
    with report_failures(as_json):
        spec = GenerationConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
            repetition_check=repetition_check,
        )  # fmt: skip
        from rankwise.commands.generate import Chat, load_tuned

        with Display(quiet) as display:
            asked = load_tuned(
                run, display, force_base=force_base, force_result=force_result, trust_code=trust_code,
                base_model=base_model,
            )  # fmt: skip
        talk = Chat.begin(asked, spec, base=base, both=both, system=system)
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
