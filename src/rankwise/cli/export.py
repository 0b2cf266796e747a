"""`rankwise export`: write a trained adapter or model as a folder for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

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


def export(
    run: RunName,
    to: Annotated[Path, option("New folder to write. The GGUF formats also take FILE.gguf.", "--to")],
    format: Annotated[str, option(
        "peft: PEFT adapter with a rank for each layer. portable: PEFT adapter with one rank for all layers, for "
        "engines such as vLLM. mlx: adapter for mlx-lm. merged: the whole model, adapter included. ollama: the "
        "merged model with a Modelfile. gguf-lora: adapter for llama.cpp. gguf: the whole model for llama.cpp. "
        "onnx: a classifier for ONNX Runtime and browsers.", autocompletion=lambda: get_args(ExportFormat))] = "peft",
    strength: Annotated[float, option(
        "Scale of the adapter: 0.5 applies half of the update. rankwise strength compares scales.")] = 1.0,
    dtype: Annotated[str | None, option(
        "Dtype of a whole model: float32, bfloat16 or float16; for gguf also q8_0, q5_1, q5_0, q4_1 or q4_0.  "
        "[default: the base model's, or float32 after full fine-tuning]")] = None,
    round_rank: Annotated[bool, option(
        "Round a portable adapter's rank up to one that vLLM supports: 1, 8, 16, 32, 64, 128, 256, 320 or 512.",
        "--round-rank")] = False,
    base_model: BaseModel = None,
    verify: Annotated[str, option(
        "Compare the export with the trained model in every installed engine, even if that takes long. With the URL "
        "of a server that serves the export (--verify http://localhost:8000), compare that server.  [default: if an "
        "engine is installed and the model is small]", "--verify", metavar="[URL]", show_default=False)] = "auto",
    no_verify: Annotated[bool, option("Don't run any engine.", "--no-verify")] = False,
    verify_data: Annotated[str | None, option(
        "Rows with the prompts for the comparison.  [default: the run's]")] = None,
    engine_python: Annotated[list[Path] | None, option(
        "Python interpreter of an environment with an engine installed. Can be repeated.")] = None,
    server_model: Annotated[str | None, option("Model name on the --verify server.")] = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Export a run's adapter or merged model for PEFT, vLLM, llama.cpp, Ollama, MLX or ONNX."""
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
        return super().parse_args(ctx, [
            "--verify=yes" if word == "--verify" and not after.lower().startswith(("http:", "https:")) else word
            for word, after in zip(args, [*args[1:], ""], strict=True)
        ])  # fmt: skip


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
