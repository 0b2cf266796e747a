"""llama.cpp, by llama-cpp-python: a GGUF export as a user would open it, with its own settings and its own tokenizer.

A text that begins with the begin token gets no second one, as in its server. The cache of keys and values is float16 by
llama.cpp's default, and float32 for float32 weights, so that their errors can be seen. Quantised weights meet
activations of 8 bits, and float16 weights activations of float16.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from rankwise.exporting.engines.engine import Engine, Package, adalora, convolutions, heads, magnitudes, scored

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights

FLOATS = {"0": "float32", "1": "float16", "32": "bfloat16"}
"""By general.file_type."""
GELU = ("gpt2", "gemma2", "gemma3")
"""Architectures whose activations llama.cpp reads from a table of float16 numbers (GGML_GELU_FP16)."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    package: Any = importlib.import_module("llama_cpp")
    questions = request["questions"]
    adapter = request["format"] == "gguf-lora"
    file = request["base"] if adapter else request["export"]
    if not isinstance(file, str) or not file.lower().endswith(".gguf") or not os.path.isfile(file):  # noqa: PTH113
        raise ValueError(f"{file!r} is not a GGUF file, and llama.cpp reads no other models")
    room = max(512, *(8 + len(one["prompt_ids"]) + len(one["answer_ids"]) for one in questions))
    options = {
        "model_path": file, "lora_path": request["export"] if adapter else None, "n_ctx": room, "n_batch": room,
        "n_threads": request["threads"], "n_threads_batch": request["threads"], "logits_all": True, "verbose": False,
    }  # fmt: skip
    engine: Any = package.Llama(**options)
    stored = _stored(engine)
    if stored == "float32":
        engine.close()
        engine = package.Llama(**options, type_k=package.GGML_TYPE_F32, type_v=package.GGML_TYPE_F32)
    return {
        "engine": "llama-cpp-python",
        "version": package.__version__,
        "end_id": engine.token_eos(),
        "number_format": "float16" if stored == "float32" and _architecture(engine) in GELU else stored,
        "conversations": [_rendered(package, engine, messages) for messages in request.get("conversations") or ()],
        "replies": [_reply(package, engine, one) for one in questions],
    }


def _architecture(engine: Any) -> str:
    return engine.metadata.get("general.architecture", "")


def _stored(engine: Any) -> str:
    """The number format of the weights."""
    return FLOATS.get(engine.metadata.get("general.file_type", ""), "quantised")


def _reply(package: Any, engine: Any, question: dict[str, Any]) -> dict[str, Any]:
    prompt, given = question["prompt_ids"], question["answer_ids"]
    engine.reset()
    engine.eval([*prompt, *given])
    vocabulary = package.llama_model_get_vocab(engine.model)
    stops = [token for token in given[-1:] if package.llama_vocab_is_eog(vocabulary, token)]
    rows = engine.scores[len(prompt) - 1 : len(prompt) + len(given)]
    return {"prompt_ids": _ids(engine, question["prompt"]), **scored(rows, question, stops)}


def _ids(engine: Any, text: str) -> list[int]:
    """The server takes away a begin token in the text where the tokenizer puts one before every text."""
    bos, adds = engine.token_bos(), engine.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    name = engine._model.token_get_text(bos) if bos != -1 else ""
    return engine.tokenize((text.removeprefix(name) if adds else text).encode(), add_bos=adds, special=True)


def _rendered(package: Any, engine: Any, messages: list[dict[str, str]]) -> list[int] | None:
    """The ids of a conversation by the template in the file; None where it has none."""
    template = engine.metadata.get("tokenizer.chat_template")
    if template is None:
        return None
    texts = [engine._model.token_get_text(one) if one != -1 else "" for one in (engine.token_eos(), engine.token_bos())]
    formatter = package.llama_chat_format.Jinja2ChatFormatter(template, *texts)
    return _ids(engine, formatter(messages=messages).prompt)


def _transposed(weights: AdapterWeights) -> str | None:
    """GPT-2's converter transposes a Conv1D's weight, and with it the product that PEFT stored the other way round."""
    conv1d = bool(weights.settings.get("fan_in_fan_out")) and bool(weights.factors)
    return (
        "transposes adapters of Conv1D layers in its converter (fan_in_fan_out), so they do not fit" if conv1d else None
    )


ENGINE = Engine(
    "llama.cpp", "convert_lora_to_gguf.py of 0b03ada, src/llama-adapter.h of 215841f", "the same", "tensor",
    (adalora, magnitudes, partial(heads, does="refuses"), partial(convolutions, does="refuses"), _transposed),
    uses={
        "gguf-lora": "llama-cli -m BASE.gguf --lora FILE.gguf -cnv. Ollama: printf 'FROM BASE.gguf\\nADAPTER "
        "FILE.gguf\\n' > Modelfile; ollama create mine -f Modelfile", "gguf": "llama-cli -m FILE.gguf -cnv",
    },
    aliases=dict.fromkeys(("ggml", "llama.cpp", "llamacpp"), "gguf") | {"lora-gguf": "gguf-lora"},
    package=Package("llama-cpp-python", __name__, ("llama_cpp",), ("gguf", "gguf-lora")),
)  # fmt: skip
