"""Every engine. Exports are verified by those that have a package, whatever their documentation says."""

from __future__ import annotations

from rankwise.exporting.engines import (
    llama_cpp,
    mlx_lm,
    ollama,
    onnxruntime,
    openvino,
    sglang,
    transformers,
    transformers_js,
    vllm,
)

ENGINES = (
    transformers.PEFT, transformers.ENGINE, vllm.ENGINE, sglang.ENGINE, llama_cpp.ENGINE, ollama.ENGINE,
    openvino.ENGINE, mlx_lm.ENGINE, onnxruntime.ENGINE, transformers_js.ENGINE,
)  # fmt: skip
"""The order is that of messages and pages."""
DOCS, CAUSAL_LM = "docs/export.md", "AutoModelForCausalLM"


def way_for(name: str) -> str | None:
    """The way to the engine that a user means by an unknown name of a format."""
    for engine in ENGINES:
        names = {format: format for format in engine.uses} | dict(engine.aliases)
        if (format := names.get(name.lower())) is not None:
            use = engine.uses[format]
            return f"For {engine.name}, use --format {format} and then: {use}. {DOCS} lists what each engine reads."
    return None


def loaded_with(format: str, folder: str, auto: str, outputs: int | None = None) -> str:
    """Describe how to load an export of a model that transformers opens by the class `auto`. `outputs` are those of a
    classifier."""
    engine = next(engine for engine in ENGINES if format in engine.uses)
    if engine.scale and outputs is not None and format != "merged":
        return (
            f'load it with PEFT: PeftModel.from_pretrained(base, "{folder}"), where base is the {auto} of the base '
            f"model with num_labels={outputs}"
        )
    if engine.scale and auto != CAUSAL_LM:
        name, own = ("PEFT", auto.replace("Auto", "AutoPeft")) if format == "peft" else ("transformers", auto)
        return f'load it with {name}: {own}.from_pretrained("{folder}")'
    use = engine.uses[format].replace("FILE.gguf", folder).replace("FOLDER", folder)
    return f"load it with {engine.name}: {use}"
