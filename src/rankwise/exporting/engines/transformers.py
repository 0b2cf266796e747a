"""transformers, and PEFT where the export is an adapter, as their documentation says to.

Everything is computed in float32. A merged model stops at the tokens that its own generation settings name; an adapter
at those of its base and at the end token of the tokenizer beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rankwise.exporting.engines.engine import ALL_OF_PEFT, Engine, Package, decoded, probabilities, scored

ADAPTER = ("peft", "portable")
ENCODER_DECODER = "AutoModelForSeq2SeqLM"


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
    with torch.inference_mode():
        replies = (_classified if request.get("outputs") else _generated)(request, adapter)
    return {"engine": engine, "version": version, **replies}


def _loaded(request: dict[str, Any], folder: str, **more: Any) -> Any:
    """By the class that our own model is loaded by."""
    import torch
    import transformers

    kind: Any = getattr(transformers, request["auto_class"])
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, **more).eval()


def _settings(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))


def _base_of(request: dict[str, Any]) -> str:
    """The base that the adapter names, if it is a folder here; otherwise the one of the request."""
    name = _settings(request["export"]).get("base_model_name_or_path")
    return name if isinstance(name, str) and os.path.isdir(name) else request["base"]  # noqa: PTH112


def _adapted(base: Any, folder: str) -> Any:
    """Where the adapter has rows of new tokens, the base gets as many rows first, as PEFT expects."""
    import peft
    from transformers import AutoTokenizer

    if _settings(folder).get("trainable_token_indices"):
        needed = len(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        if needed > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(needed, mean_resizing=False)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def _generated(request: dict[str, Any], adapter: bool) -> dict[str, Any]:
    from transformers import AutoTokenizer

    folder = request["export"]
    base = _base_of(request) if adapter else folder
    model = _loaded(request, base)
    own = (Path(folder) / "tokenizer.json").is_file()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder if own else base, local_files_only=True)
    stops = _ids(model.generation_config.eos_token_id)
    if adapter or not stops:
        stops = sorted({*stops, *_ids(tokenizer.eos_token_id)})
    model = _adapted(model, folder) if adapter else model
    logits = _answer_logits if request["auto_class"] == ENCODER_DECODER else _continued_logits
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
                **scored(logits(model, one["prompt_ids"], one["answer_ids"]), one, stops),
            }
            for one in request["questions"]
        ],
    }


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], thinks: bool) -> list[int]:
    """The conversation by the template of the export."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=thinks
    )


def _continued_logits(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """A decoder-only model's logits (n + 1, V) for each of the n tokens of an answer and for the token after it."""
    import torch

    return model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]


def _answer_logits(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """An encoder-decoder's logits (n + 1, V) for each of the n tokens of an answer and for the token after it. The
    model shifts the labels behind its start token, so the last label is not read."""
    import torch

    return model(input_ids=torch.tensor([prompt]), labels=torch.tensor([[*answer, 0]])).logits[0]


def _classified(request: dict[str, Any], adapter: bool) -> dict[str, Any]:
    """What a classifier gives for each text or image. A whole model names its outputs, and an adapter has them in the
    order of the classes."""
    import transformers

    images, names = any("image" in one for one in request["questions"]), request["classes"]
    reader = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    read: Any = reader.from_pretrained(request["export"], local_files_only=True)
    model = _with_head(request, read) if adapter else _loaded(request, request["export"])
    settings = {"label2id": {name: at for at, name in enumerate(names)}, "problem_type": request["problem_type"]}
    settings = settings if adapter else model.config.to_dict()
    replies: list[dict[str, Any]] = []
    for one in request["questions"]:
        inputs = read(*((decoded(one["image"]),) if images else (one["text"], one["pair"])), return_tensors="pt")
        outputs = probabilities(model(**inputs).logits[0], settings, one, names)
        replies.append({"outputs": outputs, "prompt_ids": None if images else inputs["input_ids"][0].tolist()})
    return {"replies": replies}


def _with_head(request: dict[str, Any], read: Any) -> Any:
    """The base under an adapter, which brings the head."""
    base = _loaded(request, _base_of(request), num_labels=request["outputs"], ignore_mismatched_sizes=True)
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


ENGINE = Engine(
    "transformers", "5.24.0", "transformers/integrations/peft.py (PEFT does the work)", "patterns", reads=ALL_OF_PEFT,
    uses={"merged": 'AutoModelForCausalLM.from_pretrained("FOLDER")'}, aliases={"transformers": "merged"},
    package=Package("transformers", __name__, ("transformers", "torch"), ("merged",)),
)  # fmt: skip
PEFT = Engine(
    "PEFT", "0.21.2", "peft/tuners/lora/layer.py, peft/utils/other.py", "patterns", reads=ALL_OF_PEFT,
    uses={"peft": 'AutoPeftModelForCausalLM.from_pretrained("FOLDER")'},
    aliases=dict.fromkeys(("safetensors", "lora", "hf"), "peft"),
    package=Package("peft", __name__, ("peft", "torch"), ("peft", "portable")),
)  # fmt: skip
"""What wrote the format reads all of it."""
