"""TensorRT-LLM, which takes the rank from the tensor."""

from __future__ import annotations

from functools import partial

from rankwise.exporting.engines.engine import Engine, adalora, convolutions, heads

ENGINE = Engine(
    "TensorRT-LLM", "007e181", "tensorrt_llm/lora_manager.py", "tensor-rslora",
    (adalora, partial(heads, does="does not load"), partial(convolutions, does="has no layer for")),
)  # fmt: skip
