"""Models of real shapes with random weights, for measurements of memory and time. Their tokenizer is the starter's;
an encoder with a decoder has the end token behind every text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STARTER, RANDOM = "smollm2-135m", "random-360m"
SHAPE = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of SmolLM2-360M."""
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "random-t5-small": ("T5Config", {}),
    "random-bart-base": ("BartConfig", {
        "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12,
    }),
}  # fmt: skip
"""Encoders with decoders, by the class and the settings of transformers."""
T5, BART = SIDES


def model_of(name: str, cache: Path) -> str:
    """The folder of random weights in the cache, made once; any other name as it is."""
    if name not in (RANDOM, *SIDES):
        return name
    folder = cache / name
    if not (folder / "model.safetensors").is_file():
        _write(name, folder)
    return str(folder)


def _write(name: str, folder: Path) -> None:
    import torch
    import transformers
    from tokenizers.processors import TemplateProcessing

    from rankwise.base.sources import find
    from rankwise.config.models import ModelConfig
    from rankwise.runs.records import silent

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(find(ModelConfig(name=STARTER), silent).folder)
    if name == RANDOM:
        config = transformers.LlamaConfig(**SHAPE)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        end, number = tokenizer.eos_token, tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, number)]
        )  # fmt: skip
        kind, settings = SIDES[name]
        config = getattr(transformers, kind)(
            **settings, vocab_size=len(tokenizer), eos_token_id=number,
            pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
