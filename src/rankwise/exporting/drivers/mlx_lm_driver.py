"""Opens an export with mlx-lm: a merged folder as a model, or an adapter in MLX's own format over its base.

Weights are computed with in the number format that they are stored in; a base of an adapter is raised to float32. It
may be a converted copy here, and gets its own rotary settings under the names that mlx-lm reads.
"""

from __future__ import annotations

from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]
    import mlx_lm  # pyright: ignore[reportMissingImports]

    adapter = request["export"] if request["format"] == "mlx" else None
    folder, more = (request["base"], request.get("base_settings")) if adapter else (request["export"], None)
    model, tokenizer = mlx_lm.load(folder, model_config=more, adapter_path=adapter)
    if adapter:
        model.set_dtype(mx.float32)
    return {
        "engine": "mlx-lm",
        "version": mlx_lm.__version__,
        "end_id": tokenizer.eos_token_id,
        "stop_ids": None if adapter else sorted(tokenizer.eos_token_ids),
        "conversations": [
            _rendered(tokenizer, messages, request.get("thinks", False))
            for messages in request.get("conversations", ())
        ],
        "replies": [_reply(model, tokenizer, one) for one in request["questions"]],
    }


def _rendered(tokenizer: Any, messages: list[dict[str, str]], thinks: bool) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=thinks, return_dict=False)
    return [int(one) for one in ids]


def _reply(model: Any, tokenizer: Any, question: dict[str, Any]) -> dict[str, Any]:
    """An answer that is the given one was computed from the logits that score it. Only where it parts from the given
    one is that read in a pass of its own, which takes as long again."""
    import mlx.core as mx  # pyright: ignore[reportMissingImports]

    prompt, given = question["prompt_ids"], question["answer_ids"]
    ids, rows = _greedy(model, tokenizer, prompt, question["max_new_tokens"])
    if given and len(rows) >= len(given) and ids[: len(given)][:-1] == given[:-1]:
        scores = _scores(mx.concatenate(rows[: len(given)]), given)
    else:
        scores = _scores(model(mx.array([prompt + given]))[0, len(prompt) - 1 : -1], given)
    return {
        "prompt_ids": [int(one) for one in tokenizer.encode(question["prompt"], add_special_tokens=False)],
        "answer_ids": ids,
        "answer": tokenizer.decode(ids, skip_special_tokens=True),
        **scores,
    }


def _greedy(model: Any, tokenizer: Any, prompt: list[int], new: int) -> tuple[list[int], list[Any]]:
    """mlx-lm's answer, greedy as it is without a sampler, and the logits (1, V) that each of its tokens was chosen
    by."""
    from mlx_lm import stream_generate  # pyright: ignore[reportMissingImports]

    rows: list[Any] = []

    def seen(_: Any, logits: Any) -> Any:
        rows.append(logits)
        return logits

    ids = [int(step.token) for step in stream_generate(model, tokenizer, prompt, new, logits_processors=[seen])]
    return ids, rows


def _scores(logits: Any, given: list[int]) -> dict[str, list[float]]:
    """From logits (T, V)."""
    import mlx.core as mx  # pyright: ignore[reportMissingImports]

    if not given:
        return {"log_probabilities": [], "logits": []}
    logits = logits.astype(mx.float32)
    values = {"log_probabilities": logits - mx.logsumexp(logits, axis=-1, keepdims=True), "logits": logits}
    chosen = mx.array(given)[:, None]
    return {name: mx.take_along_axis(one, chosen, axis=-1)[:, 0].tolist() for name, one in values.items()}


if __name__ == "__main__":
    from driver_loop import run  # pyright: ignore[reportMissingImports]

    run(answer)
