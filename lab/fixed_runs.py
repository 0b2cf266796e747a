"""Train six small runs on one tiny random model through the command line and print a hash of each result's tensors.

    PYTHONPATH=src python lab/fixed_runs.py

A change that is not meant to change numbers prints the same six lines before and after, on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EAGER = "training.backend=eager"
RUNS = {
    "lora": ["--method", "lora"],
    "adalora": ["--method", "adalora"],
    "eva": ["--method", "lora", "--set", "adapter.start=eva"],
    "dora": ["--method", "lora", "--set", "adapter.dora=true"],
    "full": ["--method", "full", "--set", "training.learning_rate=0.001"],
    "packed": ["--method", "lora", "--set", "data.packing=true", "--set", EAGER],
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def write_rows(file: Path) -> None:
    rows = [{"prompt": f"What is {n} plus {n + 3}?", "completion": f"It is {2 * n + 3}."} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_model(folder / "tiny")
        write_rows(folder / "rows.jsonl")
        environment["RANKWISE_CACHE"] = str(folder / "cache")
        for name, flags in RUNS.items():
            command = [
                sys.executable, "-m", "rankwise", "train", "--model", "tiny", "--data", "rows.jsonl", "--run", name,
                "--set", "training.steps=40", "--set", "training.batch_size=8", "--set", "data.held_out=8", "--quiet",
                *flags,
            ]  # fmt: skip
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            result = next((folder / "runs" / name / part for part in ("adapter", "model")
                           if (folder / "runs" / name / part).is_dir()), None)  # fmt: skip
            print(name, hash_of(result) if result and done.returncode == 0 else done.stderr[-2000:])


if __name__ == "__main__":
    main()
