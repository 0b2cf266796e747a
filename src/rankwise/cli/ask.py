"""`rankwise generate` and `rankwise chat`: ask a run's model, its untouched base, or both."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import (
    Base,
    BaseModel,
    Both,
    ForceBase,
    ForceResult,
    Json,
    MaxNewTokens,
    Quiet,
    RunName,
    Seed,
    System,
    Temperature,
    TopP,
    TrustCode,
)
from rankwise.errors import DataError, Interrupted, RankwiseError
from rankwise.spec.generation import GenerationSpec

if TYPE_CHECKING:
    from rankwise.verbs.chat import Chat


def generate(
    run: RunName,
    prompt: Annotated[str, typer.Option(help="What to ask; - reads it from stdin.", show_default=False)],
    base: Base = False,
    both: Both = False,
    system: System = None,
    context: Annotated[str, typer.Option(help="What the question is about (Alpaca's input).", show_default=False)] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Get one answer from a run."""
    with failures_told(as_json):
        spec = GenerationSpec(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        asked = _stdin() if prompt == "-" else prompt
        from rankwise.verbs.generate import generate as generate_verb

        streamed = not as_json and not both
        with Display(quiet) as display:
            generated = generate_verb(
                run, asked, spec, system=system, context=context, base=base, both=both, announce=display,
                force_base=force_base, force_result=force_result, trust_code=trust_code, base_model=base_model,
                heard=_aloud if streamed else None,
            )  # fmt: skip
        if as_json:
            print_json(generated.summary())
        elif streamed:
            typer.echo()
        else:
            assert generated.adapted is not None and generated.base is not None, "both were asked"
            typer.echo(f"adapted: {generated.adapted.text}\nbase:    {generated.base.text}")


def chat(
    run: RunName,
    base: Base = False,
    both: Both = False,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a run. An empty line is passed over; /new begins again; /quit, Ctrl-D or Ctrl-C ends."""
    with failures_told(as_json):
        spec = GenerationSpec(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        from rankwise.verbs.ask import open_for_asking
        from rankwise.verbs.chat import Chat

        with Display(quiet) as display:
            asked = open_for_asking(
                run, display, force_base=force_base, force_result=force_result, trust_code=trust_code,
                base_model=base_model,
            )  # fmt: skip
        talk = Chat.begin(asked, spec, base=base, both=both, system=system)
        interrupted = _converse(talk, aloud=not as_json)
        if as_json:
            print_json({"run": run, "turns": talk.turns()})
        if interrupted:
            raise typer.Exit(130)


def _converse(talk: Chat, *, aloud: bool) -> bool:
    """Until the talk is ended; whether that was by Ctrl-C. What was said so far is kept."""
    try:
        while (line := _next_line()) is not None and line != "/quit":
            _hear(talk, line, aloud)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        return True
    return False


def _hear(talk: Chat, line: str, aloud: bool) -> None:
    if line == "/new":
        talk.forget()
    elif line:
        try:
            _turn(talk, line, aloud)
        except RankwiseError as error:  # such as a conversation that has grown too long: the talk goes on
            print(f"rankwise: {error} /new begins again.", file=sys.stderr)


def _turn(talk: Chat, line: str, aloud: bool) -> None:
    talk.ask(line)
    for side in talk.sides:
        if aloud and len(talk.sides) > 1:
            typer.echo(f"{side}: ", nl=False)
        talk.answer(side, _aloud if aloud else None)
        if aloud:
            typer.echo()


def _stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")  # `echo` adds it; nobody asks with it
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _next_line() -> str | None:
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  line editing and history, where this Python has them
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _not_utf8(error: UnicodeDecodeError) -> DataError:
    return DataError(f"the prompt that came by stdin is not UTF-8 text (byte {error.start}).")


def _aloud(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
