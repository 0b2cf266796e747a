"""GGUF files in llama.cpp itself: the same token ids, the same log-probabilities. Skipped where it is not installed.

`RANKWISE_ENGINES` names interpreters of environments that have llama-cpp-python, separated as in PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.command import rankwise
from kit.families import BY_NAME
from kit.gguf_models import KINDS, adapter_in, layers_of, model_in
from rankwise.adapters.formats.peft import read_peft
from rankwise.exporting.engine_process import CHILD
from rankwise.exporting.engines import llama_cpp
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

TEXTS = [
    "What is the capital of France?", "It's 3 o'clock, WE'LL see: 12345 67 8.9", "def f(x):\n    return  x ** 2\n\n\n",
    "  two spaces  and a tab\t\n \n", "Caf\u00e9 cr\u00e8me, \u00fcber \u05e9\u05dc\u05d5\u05dd \u4f60\u597d",
    "\U0001f600!", "a", "no  3 and   42 spaces before digits", "x=1;y=[2,3];z={'a':\"b\"}", "... --- !!! ###\n\n###",
]  # fmt: skip


@cache
def interpreter() -> str:
    for python in [*os.environ.get("RANKWISE_ENGINES", "").split(os.pathsep), sys.executable]:
        found = python and subprocess.run([python, "-E", "-c", "import llama_cpp"], capture_output=True, check=False)
        if found and found.returncode == 0:
            return python
    pytest.skip("no interpreter has llama-cpp-python; RANKWISE_ENGINES names one")


def asked(export, questions, base=None, conversations=()):
    request = {
        "export": str(export), "base": None if base is None else str(base), "threads": 1, "questions": questions,
        "format": "gguf" if base is None else "gguf-lora", "conversations": list(conversations),
    }  # fmt: skip
    words = [interpreter(), "-E", "-s", str(CHILD), llama_cpp.__name__]
    done = subprocess.run(words, input=json.dumps(request), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def export(*words):
    result = rankwise("export", *words)
    assert result.exit_code == 0, result.output


def log_probabilities(model, prompt, answer):
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_merged_models_and_adapters_are_ours_in_llama_cpp(kind, tmp_path):
    interpreter()
    base = model_in(tmp_path / "base", kind)
    adapter = adapter_in(tmp_path / "adapter", base, layers_of(kind))
    zero = adapter_in(tmp_path / "zero", base, layers_of(kind), size=0.0)
    export(adapter, "--to", tmp_path / "merged.gguf", "--format", "gguf", "--dtype", "float32")
    export(zero, "--to", tmp_path / "base.gguf", "--format", "gguf", "--dtype", "float32")
    export(adapter, "--to", tmp_path / "adapter.gguf", "--format", "gguf-lora")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    prompt, answer = list(range(5, 65)), list(range(100, 140))  # longer than a window of Gemma's
    question = {"prompt": "The quick", "prompt_ids": prompt, "answer_ids": answer, "max_new_tokens": 4}
    before = log_probabilities(model, prompt, answer)
    read_peft(model, adapter)
    ours = log_probabilities(model, prompt, answer)
    assert (ours - before).abs().mean() > 0.1
    replies = [
        asked(tmp_path / "merged.gguf", [question]),
        asked(tmp_path / "adapter.gguf", [question], tmp_path / "base.gguf"),
    ]  # fmt: skip
    for reply in replies:
        theirs = torch.tensor(reply["replies"][0]["log_probabilities"], dtype=torch.float64)
        assert (theirs - ours).abs().max() <= 2e-3 and (theirs - ours).abs().mean() <= 3e-4, kind
        table = kind in ("gpt2", "gemma2", "gemma3_text")  # llama.cpp reads GELU from a table of float16
        assert reply["number_format"] == ("float16" if table else "float32")


def complete_merges(file):
    """As real tokenizers made from SentencePiece have them: every pair that spells a piece, piece after piece."""
    parts = json.loads(file.read_text())
    words, merges = parts["model"]["vocab"], parts["model"]["merges"]
    parts["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in dict.fromkeys("".join(pair) for pair in merges)
        for cut in range(1, len(piece))
        if piece[:cut] in words and piece[cut:] in words
    ]
    file.write_text(json.dumps(parts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pieces"),
    [
        ("chatml", "gpt2"), ("llama3", "llama3"), ("qwen2", "qwen"), ("qwen3", "qwen"), ("gemma", "bare"),
        ("llama2", "prepend"), ("mistral3", "prepend"), ("zephyr", "gpt2"),
    ],
)  # fmt: skip
def test_texts_and_conversations_have_the_same_ids_in_llama_cpp(family, pieces, tmp_path):
    interpreter()
    base = model_in(tmp_path / "base", "llama", family, pieces)
    if pieces in ("bare", "prepend"):
        complete_merges(base / "tokenizer.json")
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    export(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf")
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(base), [])
    template = ChatTemplate.of_model(HubTokenizer(tokenizer.hub, [tokenizer.hub.eos_token_id]))
    spoken = [[("user", text), ("assistant", "Yes."), ("user", "And?")] for text in TEXTS] + [[("user", "Hi")]]
    if BY_NAME[family].system:
        spoken.append([("system", "Be short."), ("user", "Hi")])
    rendered = [template.text([Message(*turn) for turn in one], answer_next=True) for one in spoken]
    texts = [*TEXTS, *rendered]
    questions = [{"prompt": text, "prompt_ids": [3], "answer_ids": [], "max_new_tokens": 1} for text in texts]
    messages = [[{"role": role, "content": content} for role, content in one] for one in spoken]
    reply = asked(tmp_path / "a.gguf", questions, conversations=messages)
    start = tokenizer.start if BY_NAME[family].bos else ""
    for text, one in zip(texts, reply["replies"], strict=True):
        ours = tokenizer.encode(text)
        assert one["prompt_ids"] in (ours, tokenizer.encode(start) + ours), text
    for text, ids in zip(rendered, reply["conversations"], strict=True):
        assert ids == tokenizer.encode(text), text


def test_an_engine_says_what_is_wrong_in_one_object(tmp_path):
    assert "is not a GGUF file" in asked(tmp_path / "nothing.gguf", [])["error"]


@pytest.mark.slow
def test_an_answer_parts_where_the_given_answer_is_not_its_own(tmp_path):
    interpreter()
    base = model_in(tmp_path / "base", "llama")
    adapter = adapter_in(tmp_path / "adapter", base, layers_of("llama"))
    export(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf", "--dtype", "float32")
    prompt = {"prompt": "the quick brown fox", "max_new_tokens": 12}
    ids = AutoTokenizer.from_pretrained(base)(prompt["prompt"], add_special_tokens=False)["input_ids"]
    alone: list[int] = []
    while len(alone) < 12:
        (reply,) = asked(tmp_path / "a.gguf", [prompt | {"prompt_ids": ids, "answer_ids": alone}])["replies"]
        alone = reply["answer_ids"]
    other = [*alone[:5], (alone[5] + 1) % 300, *alone[6:]]
    for begun in (alone, alone[:4], other):
        (reply,) = asked(tmp_path / "a.gguf", [prompt | {"prompt_ids": ids, "answer_ids": begun}])["replies"]
        shared = next((at for at, pair in enumerate(zip(alone, begun, strict=False)) if pair[0] != pair[1]), len(begun))
        assert reply["answer_ids"] == alone[: shared + 1] and len(reply["log_probabilities"]) == len(begun)
