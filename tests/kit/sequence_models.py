"""A tiny random T5 and a tiny random BART on disk, with tokenizers like theirs, and rows to learn by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXT = [
    "What is land 0? It is town 1. What is land 23? It is town 45.", "translate: land 6 -> town 7 8 9",
    "Summarise the text below in one sentence, please.", "It is a town in the land of many towns.",
]  # fmt: skip
KINDS = ("t5", "bart")


def sequence_folder(kind: str, folder: Path, seed: int = 0, dropout: float = 0.0) -> Path:
    """A model of two blocks on each side and width 32."""
    tokenizer = _sentencepiece_like() if kind == "t5" else _byte_level()
    torch.manual_seed(seed)
    model = _t5(len(tokenizer), dropout) if kind == "t5" else _bart(len(tokenizer), dropout)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _t5(vocabulary: int, dropout: float) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=dropout,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, relative_attention_num_buckets=8,
    ))  # fmt: skip


def _bart(vocabulary: int, dropout: float) -> BartForConditionalGeneration:
    return BartForConditionalGeneration(BartConfig(
        vocab_size=vocabulary, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        dropout=dropout, init_std=0.2,
    ))  # fmt: skip


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    """`text </s>`, with a space before every text, as T5's."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer: Any = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _byte_level() -> PreTrainedTokenizerFast:
    """`<s> text </s>`, as BART's."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", model_input_names=["input_ids", "attention_mask"], model_max_length=64,
    )  # fmt: skip


def lands(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions of different lengths, each with its own answer."""
    more = ("", " please", " in one sentence, please")
    return [
        {"input": f"What is land {at}?{more[at % 3]}", "output": f"It is town {at + 1}." + " It is a town." * (at % 2)}
        for at in range(start, start + count)
    ]
