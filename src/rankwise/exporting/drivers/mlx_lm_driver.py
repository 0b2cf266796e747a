"""Opens an export with mlx-lm: a merged folder as a model, or an adapter in MLX's own format over its base.

Weights are computed with in the number format that they are stored in; a base of an adapter is raised to float32.
"""

from __future__ import annotations

from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]
    import mlx_lm  # pyright: ignore[reportMissingImports]

    adapter = request["export"] if request["format"] == "mlx" else None
    model, tokenizer = mlx_lm.load(request["base"] if adapter else request["export"], adapter_path=adapter)
    if adapter:
        model.set_dtype(mx.float32)
    return {
        "engine": "mlx-lm",
        "version": mlx_lm.__version__,
        "end_id": tokenizer.eos_token_id,
        "stop_ids": None if adapter else sorted(tokenizer.eos_token_ids),
        "conversations": [_rendered(tokenizer, messages) for messages in request.get("conversations", ())],
        "replies": [_reply(model, tokenizer, one) for one in request["questions"]],
    }


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    return [int(one) for one in ids]


def _reply(model: Any, tokenizer: Any, question: dict[str, Any]) -> dict[str, Any]:
    ids = _greedy(model, tokenizer, question["prompt_ids"], question["max_new_tokens"])
    return {
        "prompt_ids": [int(one) for one in tokenizer.encode(question["prompt"], add_special_tokens=False)],
        "answer_ids": ids,
        "answer": tokenizer.decode(ids, skip_special_tokens=True),
        "log_probabilities": _log_probabilities(model, question["prompt_ids"], question["answer_ids"]),
    }


def _greedy(model: Any, tokenizer: Any, prompt: list[int], new: int) -> list[int]:
    """Greedy is what mlx-lm does where it is given no sampler."""
    from mlx_lm import stream_generate  # pyright: ignore[reportMissingImports]

    return [int(step.token) for step in stream_generate(model, tokenizer, prompt, max_tokens=new)]


def _log_probabilities(model: Any, prompt: list[int], given: list[int]) -> list[float]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]

    if not given:
        return []
    logits = model(mx.array([prompt + given]))[0, len(prompt) - 1 : -1].astype(mx.float32)
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(scores, mx.array(given)[:, None], axis=-1)[:, 0].tolist()


if __name__ == "__main__":
    from driver_loop import run  # pyright: ignore[reportMissingImports]

    run(answer)
