"""mlx-lm: a merged folder as a model, or an adapter in MLX's own format over its base.

Weights are computed with in the number format that they are stored in; a base of an adapter is raised to float32. It
may be a converted copy here, and gets its own rotary settings under the names that mlx-lm reads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rankwise.exporting.engines.engine import Engine, Package, scored

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]

    package: Any = importlib.import_module("mlx_lm")
    adapter = request["export"] if request["format"] == "mlx" else None
    folder, more = (request["base"], request.get("base_settings")) if adapter else (request["export"], None)
    model, tokenizer = package.load(folder, model_config=more, adapter_path=adapter)
    if adapter:
        model.set_dtype(mx.float32)
    stops = sorted(tokenizer.eos_token_ids)
    return {
        "engine": "mlx-lm",
        "version": package.__version__,
        "end_id": tokenizer.eos_token_id,
        "stop_ids": None if adapter else stops,
        "conversations": [
            _rendered(tokenizer, messages, request.get("thinks", False))
            for messages in request.get("conversations", ())
        ],
        "replies": [_reply(model, tokenizer, one, stops) for one in request["questions"]],
    }


def _rendered(tokenizer: Any, messages: list[dict[str, str]], thinks: bool) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=thinks, return_dict=False)
    return [int(one) for one in ids]


def _reply(model: Any, tokenizer: Any, question: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]

    logits = model(mx.array([question["prompt_ids"] + question["answer_ids"]]))[0, len(question["prompt_ids"]) - 1 :]
    ids = tokenizer.encode(question["prompt"], add_special_tokens=False)
    return {"prompt_ids": [int(one) for one in ids], **scored(logits.astype(mx.float32), question, stops)}


def _other_format(weights: AdapterWeights) -> str | None:
    return "reads no folders of PEFT, only its own format (adapters.safetensors and lora_parameters); merge instead"


ENGINE = Engine(
    "mlx-lm", "0.32.0 (d78bf58)", "mlx_lm/tuner/utils.py", "none", (_other_format,),
    uses={"mlx": "mlx_lm.generate --model BASE --adapter-path FOLDER"}, aliases={"mlx-lm": "mlx"},
    package=Package("mlx-lm", __name__, ("mlx_lm",), ("merged", "mlx")),
)  # fmt: skip
