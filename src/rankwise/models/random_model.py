"""A random Llama of two blocks whose tokens are single bytes: a whole model folder, made without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rankwise.models import quiet

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # isort: skip

SPECIAL = ("<start>", "<turn>", "<end>")
TEMPLATE = (
    "{% for message in messages %}{{ '<turn>' + message['role'] + ':' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"
)


def write_random_model(folder: Path, seed: int = 0) -> None:
    """Weights of about 100 kB, drawn from the seed, with a tokenizer and a chat template."""
    quiet.hush()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: at for at, text in enumerate((*SPECIAL, *letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, _, end = SPECIAL
    written = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end,
        additional_special_tokens=list(SPECIAL),
    )  # fmt: skip
    written.chat_template = TEMPLATE
    written.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(written), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
