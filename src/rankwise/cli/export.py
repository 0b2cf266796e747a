"""`rankwise export`: write a trained adapter or model as a folder for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, RunName, option
from rankwise.config.adapters import ExportFormat
from rankwise.errors import ConfigError
from rankwise.reporting.quantities import size

if TYPE_CHECKING:
    from rankwise.commands.export import Exported
    from rankwise.exporting.verification import Verifying


To = Annotated[
    Path,
    option("Folder to create; it must not exist yet. The GGUF formats also take FILE.gguf.", "--to"),
]
Format = Annotated[
    str,
    typer.Option(
        help="peft: PEFT's format, with a rank for each layer. portable: one rank and alpha for all layers, "
        "for engines that need this. mlx: the same for mlx-lm. merged: the whole model, for engines without "
        "adapters or full fine-tuning. ollama: the same with a Modelfile. gguf-lora: the adapter for llama.cpp. "
        "gguf: the whole model for llama.cpp. onnx: a classifier for onnxruntime and browsers.",
        autocompletion=lambda: get_args(ExportFormat),
    ),
]
Strength = Annotated[
    float, typer.Option(help="Factor of the adapter's change: 0.5 is half of it. `rankwise strength` compares factors.")
]
Dtype = Annotated[
    str | None,
    option(
        "Number format of a merged model: float32, bfloat16 or float16; for gguf also q8_0, q5_1, q5_0, q4_1 "
        "or q4_0.  [default: the base model's, or float32 after full fine-tuning]"
    ),
]
RoundRank = Annotated[
    bool,
    option(
        "Give a portable adapter the next rank that vLLM has room for: 1, 8, 16, 32, 64, 128, 256, 320, 512.",
        "--round-rank",
    ),
]
Verify = Annotated[
    str,
    option(
        "Compare what was written with the trained model in every engine at hand, even if that takes long. "
        "With the address of a server that serves TO (--verify http://localhost:8000): compare that server.  "
        "[default: if an engine is installed and the model is small]",
        "--verify",
        metavar="[URL]",
    ),
]
VerifyData = Annotated[str | None, option("Rows whose prompts the engines answer.  [default: the run's]")]
EnginePython = Annotated[
    list[Path] | None,
    option("Interpreter of an environment that has an engine; may be repeated."),
]
ServerModel = Annotated[str | None, option("Name of the model at the server of --verify.")]
NoVerify = Annotated[bool, option("Run no engine.", "--no-verify")]


def export(
    run: RunName,
    to: To,
    format: Format = "peft",
    strength: Strength = 1.0,
    dtype: Dtype = None,
    round_rank: RoundRank = False,
    base_model: BaseModel = None,
    verify: Verify = "auto",
    no_verify: NoVerify = False,
    verify_data: VerifyData = None,
    engine_python: EnginePython = None,
    server_model: ServerModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a run's adapter or model as a folder that other programs can load."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.export import export as export_command

        verifying = _verifying(verify, no_verify, engine_python or (), verify_data, server_model)
        exported = export_command(
            run, to, format, strength=strength, dtype=dtype, force_base=force_base, force_result=force_result,
            base_model=base_model, round_rank=round_rank, verifying=verifying, callback=display,
        )  # fmt: skip
        lines = [_line(exported), *_template_lines(exported), *exported.verification.lines(), exported.use]
        print_result(as_json, exported.summary(), *lines)


class OptionalAddress(TyperCommand):
    """`--verify` with an address behind it, or with nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        bare = [
            word == "--verify" and not after.lower().startswith(("http:", "https:"))
            for word, after in zip(args, following, strict=True)
        ]
        return super().parse_args(
            ctx, ["--verify=yes" if alone else word for word, alone in zip(args, bare, strict=True)]
        )


def _verifying(
    verify: str, no_verify: bool, pythons: Sequence[Path], rows: str | None, server_model: str | None
) -> Verifying:
    from rankwise.exporting.verification import Verifying

    if no_verify and verify != "auto":
        raise ConfigError(["--verify and --no-verify exclude each other. Leave one of them out."])
    url = None if verify in ("auto", "yes") else verify
    wish = "no" if no_verify else "auto" if verify == "auto" and not pythons and rows is None else "yes"
    return Verifying(wish, pythons, rows, url, server_model)


def _line(exported: Exported) -> str:
    scaled = f" at strength {exported.strength:g}" if exported.strength != 1 else ""
    what = f"{exported.to}: {exported.format}{scaled}, {size(exported.bytes)}"
    if exported.base_quantized is not None and (exported.gguf or exported.merged):
        what += f", with the {exported.base_quantized} weights of the base unpacked"
    if exported.gguf is not None:
        rounded = f"{exported.gguf.dtype} rounds numbers by up to {exported.gguf.rounding:.2g} of a tensor's largest"
        return f"{what}; read back and compared: every tensor is the trained model's ({rounded})"
    if (merged := exported.merged) is None and exported.rank is None:
        return f"{what} of float32"
    if merged is None:
        return f"{what}, rank {exported.rank}; read back and compared: the same adapter{scaled}"
    change = merged.logits_change
    return (
        f"{what} of {merged.dtype}; read back and compared: its logits differ from the trained model's by "
        f"{merged.logits_difference:.2g} of the largest ({merged.dtype} rounds weights by up to {merged.rounding:.2g})"
        + ("" if change is None else f"; the adapter changes them by {change:.2g}")
    )


def _template_lines(exported: Exported) -> list[str]:
    """What was compared of a Modelfile's template, and what it cannot do; and where a folder carries no template."""
    if (template := exported.ollama) is None:
        return [] if exported.parity is None or exported.parity.carrier else list(exported.parity.refused)
    parity = template.parity
    same = f"its template gives {parity.same} of {parity.conversations} conversations the token ids of training"
    return [same, *(f"Ollama's templates cannot carry {note}" for note in template.notes)]
