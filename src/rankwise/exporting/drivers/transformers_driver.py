"""Opens an export with transformers, and with PEFT where it is an adapter, as their documentation says to.

Everything is computed in float32. A merged model stops at the tokens that its own generation settings name; an adapter
at those of its base and at the end token of the tokenizer beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ADAPTER = ("peft", "portable")
PADDED = 16
"""Prompts that are answered together."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    transformers.logging.set_verbosity_error()
    adapter = request["format"] in ADAPTER
    if adapter:
        import peft

        engine, version = "peft", peft.__version__
    else:
        engine, version = "transformers", transformers.__version__
    replies = (_classified if request.get("outputs") else _written)(request, adapter)
    return {"engine": engine, "version": version, **replies}


def _options() -> dict[str, Any]:
    import torch

    return {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}


def _kind(request: dict[str, Any]) -> Any:
    """The class that our own model is loaded by."""
    import transformers

    return getattr(transformers, request["auto_class"])


def _base_of(request: dict[str, Any]) -> str:
    """The base that the adapter names, if it is a folder here; otherwise the one of the request."""
    config = json.loads((Path(request["export"]) / "adapter_config.json").read_text(encoding="utf-8"))
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) and os.path.isdir(name) else request["base"]  # noqa: PTH112


def _adapted(base: Any, folder: str) -> Any:
    """Where the adapter has rows of new tokens, the base gets as many rows first, as PEFT expects."""
    import peft
    from transformers import AutoTokenizer

    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("trainable_token_indices"):
        needed = len(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        if needed > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(needed, mean_resizing=False)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def _written(request: dict[str, Any], adapter: bool) -> dict[str, Any]:
    from transformers import AutoTokenizer

    folder = request["export"]
    base = _base_of(request) if adapter else folder
    writer = WRITERS[request["auto_class"]]
    model: Any = _kind(request).from_pretrained(base, **_options()).eval()
    own = (Path(folder) / "tokenizer.json").is_file()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder if own else base, local_files_only=True)
    stops = _ids(model.generation_config.eos_token_id)
    if adapter or not stops:
        stops = sorted({*stops, *_ids(tokenizer.eos_token_id)})
    model = _adapted(model, folder) if adapter else model
    questions = request["questions"]
    answers = _answers(writer, model, questions, stops)
    return {
        "end_id": tokenizer.eos_token_id,
        "stop_ids": None if adapter else stops,
        "conversations": [
            _rendered(tokenizer, messages, request.get("thinks", False))
            for messages in request.get("conversations", ())
        ],
        "replies": [
            {
                "prompt_ids": tokenizer(one["prompt"], add_special_tokens=False)["input_ids"],
                "answer_ids": ids,
                "answer": tokenizer.decode(ids, skip_special_tokens=True),
                **_scores(writer, model, one["prompt_ids"], one["answer_ids"]),
            }
            for one, ids in zip(questions, answers, strict=True)
        ],
    }


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], thinks: bool) -> list[int]:
    """The conversation by the template of the export."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=thinks
    )


class Decoder:
    """Continues what it was given, so prompts end beside each other."""

    def settings(self, model: Any) -> dict[str, Any]:
        """What generation needs beside the settings that all need."""
        return {}

    def padded(self, part: list[int], fill: list[int]) -> list[int]:
        return fill + part

    def written(self, ids: Any, width: int) -> list[list[int]]:
        """The ids behind the prompts, which are so wide."""
        return ids[:, width:].tolist()

    def logits(self, model: Any, prompt: list[int], answer: list[int]) -> Any:
        import torch

        return model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]


class EncoderDecoder(Decoder):
    """The encoder's positions begin at the left, and the decoder's answers behind its first token."""

    def settings(self, model: Any) -> dict[str, Any]:
        return {"decoder_start_token_id": model.config.decoder_start_token_id}

    def padded(self, part: list[int], fill: list[int]) -> list[int]:
        return part + fill

    def written(self, ids: Any, width: int) -> list[list[int]]:
        return ids[:, 1:].tolist()

    def logits(self, model: Any, prompt: list[int], answer: list[int]) -> Any:
        import torch

        return model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[0]


WRITERS = {"AutoModelForCausalLM": Decoder(), "AutoModelForSeq2SeqLM": EncoderDecoder()}


def _answers(writer: Decoder, model: Any, questions: list[dict[str, Any]], stops: list[int]) -> list[list[int]]:
    """The greedy answer to each prompt, with the token at which it stopped."""
    order = sorted(range(len(questions)), key=lambda at: len(questions[at]["prompt_ids"]))
    answers: dict[int, list[int]] = {}
    for begin in range(0, len(order), PADDED):
        part = order[begin : begin + PADDED]
        answers |= zip(part, _together(writer, model, [questions[at] for at in part], stops), strict=True)
    return [answers[at] for at in range(len(questions))]


def _together(writer: Decoder, model: Any, questions: list[dict[str, Any]], stops: list[int]) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    rows = [one["prompt_ids"] for one in questions]
    pad, width = stops[0] if stops else 0, max(map(len, rows))
    settings = GenerationConfig(
        max_new_tokens=max(one["max_new_tokens"] for one in questions), do_sample=False, eos_token_id=stops or None,
        pad_token_id=pad, **writer.settings(model),
    )  # fmt: skip

    def padded(parts: list[list[int]], value: int) -> Any:
        return torch.tensor([writer.padded(part, [value] * (width - len(part))) for part in parts])

    with torch.inference_mode():
        ids = model.generate(
            input_ids=padded(rows, pad),
            attention_mask=padded([[1] * len(row) for row in rows], 0),
            generation_config=settings,
        )
    pairs = zip(writer.written(ids, width), questions, strict=True)
    return [_until(row[: one["max_new_tokens"]], stops) for row, one in pairs]


def _until(ids: list[int], stops: list[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _scores(writer: Decoder, model: Any, prompt: list[int], answer: list[int]) -> dict[str, list[float]]:
    """Of each token of the given answer, after the tokens before it."""
    import torch

    if not answer:
        return {"log_probabilities": [], "logits": []}
    with torch.inference_mode():
        logits = writer.logits(model, prompt, answer).double()
    values = {"log_probabilities": logits.log_softmax(-1), "logits": logits}
    return {name: one.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist() for name, one in values.items()}


def _classified(request: dict[str, Any], adapter: bool) -> dict[str, Any]:
    """What a classifier gives for each text or image: its outputs by the names of the classes, or a number; of each
    word the probability of each tag, at its first token. A whole model names its outputs, and an adapter has them in
    the order of the classes."""
    images, words = any("image" in one for one in request["questions"]), request.get("words")
    if not adapter and not words:
        return _piped(request, images)
    import torch
    import transformers

    folder, names = request["export"], request["classes"]
    kind = _kind(request)
    reader = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    read: Any = reader.from_pretrained(folder, local_files_only=True)
    model = _with_head(kind, request, read) if adapter else kind.from_pretrained(folder, **_options()).eval()
    order = list(range(len(names))) if adapter else [model.config.label2id[name] for name in names]
    replies: list[dict[str, Any]] = []
    with torch.inference_mode():
        for one in request["questions"]:
            inputs = read(_picture(one["image"]) if images else one["text"], return_tensors="pt")
            outputs = model(**inputs).logits[0].double()
            shares = outputs.sigmoid() if request.get("several") else outputs.softmax(-1)
            if words:
                first = [_first_token(inputs, start, end) for start, end in one["words"]]
                shares = shares[[at for at in first if at is not None]][:, order].flatten()
            replies.append({"outputs": (shares if names else outputs).tolist()})
    return {"replies": replies}


def _with_head(kind: Any, request: dict[str, Any], read: Any) -> Any:
    """The base under an adapter, which brings the head."""
    base: Any = kind.from_pretrained(
        _base_of(request), num_labels=request["outputs"], ignore_mismatched_sizes=True, **_options()
    )
    if "text" in request["questions"][0]:
        base.config.pad_token_id = read.pad_token_id if read.pad_token_id is not None else read.eos_token_id
    model = _adapted(base, request["export"])
    if (pooling := request.get("pooling", "own")) != "own":
        _read_pooled(base, pooling)
    return model


def _read_pooled(base: Any, pooling: str) -> None:
    """As the adapter's README says to."""
    import torch

    def pooled(body: Any, args: Any, inputs: Any, outputs: Any) -> Any:
        states = outputs.last_hidden_state
        real = inputs["attention_mask"][..., None].bool()
        mean, most = states.masked_fill(~real, 0).sum(1) / real.sum(1), states.masked_fill(~real, -torch.inf).amax(1)
        vector = {"mean": mean, "max": most, "cls": states[:, 0]}[pooling]
        outputs["pooler_output"] = torch.nn.functional.layer_norm(vector, vector.shape[-1:], eps=1e-12)
        outputs["last_hidden_state"] = outputs["pooler_output"][:, None].expand_as(states)
        return outputs

    base.base_model.register_forward_hook(pooled, with_kwargs=True)


def _first_token(inputs: Any, start: int, end: int) -> int | None:
    tokens = (inputs.char_to_token(at) for at in range(start, end))
    return next((token for token in tokens if token is not None), None)


def _piped(request: dict[str, Any], images: bool) -> dict[str, Any]:
    """By the pipeline that transformers offers for the task."""
    import transformers

    names = request["classes"]
    pipe: Any = transformers.pipeline(
        "image-classification" if images else "text-classification", model=request["export"], **_piped_options(names)
    )
    replies: list[dict[str, Any]] = []
    for one in request["questions"]:
        given = _picture(one["image"]) if images else one["text"]
        scores = {part["label"]: part["score"] for part in pipe(given, top_k=request["outputs"])}
        replies.append({"outputs": [scores[name] for name in names] if names else list(scores.values())})
    return {"replies": replies}


def _piped_options(names: list[str]) -> dict[str, Any]:
    import torch

    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    return options if names else options | {"function_to_apply": "none"}


def _picture(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


if __name__ == "__main__":
    from driver_loop import run  # pyright: ignore[reportMissingImports]

    run(answer)
