"""PEFT, which transformers uses too: what wrote the format reads all of it."""

from __future__ import annotations

from rankwise.exporting.engines import transformers
from rankwise.exporting.engines.engine import ALL_OF_PEFT, Engine, Package

ENGINE = Engine(
    "PEFT", "0.21.2", "peft/tuners/lora/layer.py, peft/utils/other.py", "patterns", reads=ALL_OF_PEFT,
    uses={"peft": 'AutoPeftModelForCausalLM.from_pretrained("FOLDER")'},
    aliases=dict.fromkeys(("safetensors", "lora", "hf"), "peft"),
    package=Package("peft", transformers.__name__, ("peft", "torch"), ("peft", "portable")),
)  # fmt: skip
