"""Export formats that each inference engine reads, for error messages and docs/export.md.

The commands come from the engines' documentation. Exports are verified through the engines' Python packages instead.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCS, WRITING = "docs/export.md", "AutoModelForCausalLM"


@dataclass(frozen=True)
class Engine:
    name: str
    format: str
    """The rankwise export format that it reads."""
    use: str
    """How to use the exported folder FOLDER."""
    aliases: tuple[str, ...] = ()
    """Format names that users of this engine are likely to try."""


ENGINES = (
    Engine("PEFT", "peft", 'AutoPeftModelForCausalLM.from_pretrained("FOLDER")', ("safetensors", "lora", "hf")),
    Engine("transformers", "merged", 'AutoModelForCausalLM.from_pretrained("FOLDER")', ("transformers",)),
    Engine(
        "vLLM", "portable", "vllm serve BASE --enable-lora --lora-modules mine=FOLDER --max-lora-rank RANK", ("vllm",)
    ),
    Engine("llama.cpp", "gguf", "llama-cli -m FILE.gguf -cnv", ("ggml", "llama.cpp", "llamacpp")),
    Engine("llama.cpp over the base", "gguf-lora", "llama-cli -m BASE.gguf --lora FILE.gguf -cnv", ("lora-gguf",)),
    Engine(
        "Ollama", "ollama", "ollama create mine -f FOLDER/Modelfile, then ollama run mine", ("modelfile",),
    ),
    Engine("MLX", "mlx", "mlx_lm.generate --model BASE --adapter-path FOLDER", ("mlx", "mlx-lm")),
)  # fmt: skip


def engine_meant_by(format: str) -> Engine | None:
    """Guess the engine that a user means by an unknown format name."""
    return next((engine for engine in ENGINES if format.lower() in engine.aliases), None)


def way_to(engine: Engine) -> str:
    """Describe the way to an engine whose own format is not supported."""
    return (
        f"For {engine.name}, use --format {engine.format} and then: {engine.use}. {DOCS} lists what each engine reads."
    )


def loaded_with(format: str, folder: str, auto: str, outputs: int | None = None) -> str:
    """Describe how to load an export of a model that transformers opens by the class `auto`. `outputs` are those of a
    classifier."""
    if outputs is not None and format != "merged":
        return (
            f'load it with PEFT: PeftModel.from_pretrained(base, "{folder}"), where base is the {auto} of the base '
            f"model with num_labels={outputs}"
        )
    if auto != WRITING:
        name, own = ("PEFT", auto.replace("Auto", "AutoPeft")) if format == "peft" else ("transformers", auto)
        return f'load it with {name}: {own}.from_pretrained("{folder}")'
    first = next(engine for engine in ENGINES if engine.format == format)
    others = ", ".join(engine.name for engine in ENGINES if engine.format == format and engine is not first)
    use = first.use.replace("FILE.gguf", folder).replace("FOLDER", folder)
    return f"load it with {first.name}: {use}" + (f"; {DOCS} says how with {others}" if others else "")
