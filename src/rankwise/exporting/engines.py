"""Which of our export formats each engine reads, and how: what a refusal points to and docs/export.md lists.

None of these engines is run here; the commands are theirs, as their documentation gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCS = "docs/export.md"


@dataclass(frozen=True)
class Engine:
    name: str
    format: str
    """Of ours, which it reads."""
    use: str
    """What to do with the exported folder FOLDER."""
    asked_as: tuple[str, ...] = ()
    """Words that people give as a format when they want it for this engine."""


ENGINES = (
    Engine("PEFT", "peft", 'AutoPeftModelForCausalLM.from_pretrained("FOLDER")', ("safetensors", "lora", "hf")),
    Engine("transformers", "merged", 'AutoModelForCausalLM.from_pretrained("FOLDER")', ("transformers",)),
    Engine(
        "vLLM", "portable", "vllm serve BASE --enable-lora --lora-modules mine=FOLDER --max-lora-rank RANK", ("vllm",)
    ),
    Engine(
        "llama.cpp", "merged", "python convert_hf_to_gguf.py FOLDER (a script of llama.cpp)",
        ("gguf", "ggml", "llama.cpp", "llamacpp"),
    ),
    Engine(
        "Ollama", "merged", "a Modelfile with the line FROM FOLDER, then ollama create mine -f Modelfile",
        ("ollama", "modelfile"),
    ),
    Engine("MLX", "merged", "mlx_lm.generate --model FOLDER", ("mlx", "mlx-lm")),
)  # fmt: skip


def wanted_for(format: str) -> Engine | None:
    """The engine that somebody has in mind who asks for this format, which is none of ours."""
    return next((engine for engine in ENGINES if format.lower() in engine.asked_as), None)


def way_to(engine: Engine) -> str:
    """Instead of a format that cannot be written yet."""
    return (
        f"For {engine.name}, use --format {engine.format} and then: {engine.use}. {DOCS} lists what each engine reads."
    )


def loaded_with(format: str, folder: str) -> str:
    """What is said after an export."""
    first = next(engine for engine in ENGINES if engine.format == format)
    others = ", ".join(engine.name for engine in ENGINES if engine.format == format and engine is not first)
    use = first.use.replace("FOLDER", folder)
    return f"load it with {first.name}: {use}" + (f"; {DOCS} says how with {others}" if others else "")
