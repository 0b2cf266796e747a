"""The sizes of published models, a line each: our name, the hub's names, and what catalogue.py makes settings of."""

from __future__ import annotations

from typing import Any

TIED = {"tie_word_embeddings": True}
Sizes = tuple[int, ...]
Settings = dict[str, Any]

GATED: list[tuple[str, str, str, Sizes, Settings]] = [
    # family, names, (vocabulary, width, inner, blocks, heads, heads of keys, context), more
    ("llama", "llama-7b", "huggyllama/llama-7b", (32000, 4096, 11008, 32, 32, 32, 2048), {}),
    ("llama", "llama-13b", "huggyllama/llama-13b", (32000, 5120, 13824, 40, 40, 40, 2048), {}),
    ("llama", "llama-30b", "huggyllama/llama-30b", (32000, 6656, 17920, 60, 52, 52, 2048), {}),
    ("llama", "llama-65b", "huggyllama/llama-65b", (32000, 8192, 22016, 80, 64, 64, 2048), {}),
    ("llama", "llama-2-7b", "meta-llama/Llama-2-7b-hf meta-llama/Llama-2-7b-chat-hf",
     (32000, 4096, 11008, 32, 32, 32, 4096), {}),
    ("llama", "llama-2-13b", "meta-llama/Llama-2-13b-hf meta-llama/Llama-2-13b-chat-hf",
     (32000, 5120, 13824, 40, 40, 40, 4096), {}),
    ("llama", "llama-2-70b", "meta-llama/Llama-2-70b-hf meta-llama/Llama-2-70b-chat-hf",
     (32000, 8192, 28672, 80, 64, 8, 4096), {}),
    ("llama", "llama-3-8b", "meta-llama/Meta-Llama-3-8B meta-llama/Meta-Llama-3-8B-Instruct",
     (128256, 4096, 14336, 32, 32, 8, 8192), {}),
    ("llama", "llama-3-70b", "meta-llama/Meta-Llama-3-70B meta-llama/Meta-Llama-3-70B-Instruct",
     (128256, 8192, 28672, 80, 64, 8, 8192), {}),
    ("llama", "llama-3.1-8b", "meta-llama/Llama-3.1-8B meta-llama/Llama-3.1-8B-Instruct",
     (128256, 4096, 14336, 32, 32, 8, 131072), {}),
    ("llama", "llama-3.1-70b", "meta-llama/Llama-3.1-70B meta-llama/Llama-3.1-70B-Instruct",
     (128256, 8192, 28672, 80, 64, 8, 131072), {}),
    ("llama", "llama-3.1-405b", "meta-llama/Llama-3.1-405B meta-llama/Llama-3.1-405B-Instruct",
     (128256, 16384, 53248, 126, 128, 8, 131072), {}),
    ("llama", "llama-3.2-1b", "meta-llama/Llama-3.2-1B meta-llama/Llama-3.2-1B-Instruct",
     (128256, 2048, 8192, 16, 32, 8, 131072), {"head_dim": 64} | TIED),
    ("llama", "llama-3.2-3b", "meta-llama/Llama-3.2-3B meta-llama/Llama-3.2-3B-Instruct",
     (128256, 3072, 8192, 28, 24, 8, 131072), {"head_dim": 128} | TIED),
    ("llama", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-135M-Instruct",
     (49152, 576, 1536, 30, 9, 3, 8192), TIED),
    ("llama", "smollm2-360m", "HuggingFaceTB/SmolLM2-360M HuggingFaceTB/SmolLM2-360M-Instruct",
     (49152, 960, 2560, 32, 15, 5, 8192), TIED),
    ("llama", "smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B HuggingFaceTB/SmolLM2-1.7B-Instruct",
     (49152, 2048, 8192, 24, 32, 32, 8192), TIED),
    ("smollm3", "smollm3-3b", "HuggingFaceTB/SmolLM3-3B", (128256, 2048, 11008, 36, 16, 4, 65536), TIED),
    ("mistral", "mistral-7b", "mistralai/Mistral-7B-v0.1", (32000, 4096, 14336, 32, 32, 8, 32768), {}),
    ("mistral", "mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3 mistralai/Mistral-7B-Instruct-v0.3",
     (32768, 4096, 14336, 32, 32, 8, 32768), {"sliding_window": None}),
    ("qwen2", "qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-0.5B-Instruct",
     (151936, 896, 4864, 24, 14, 2, 32768), TIED),
    ("qwen2", "qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-1.5B-Instruct",
     (151936, 1536, 8960, 28, 12, 2, 32768), TIED),
    ("qwen2", "qwen2.5-3b", "Qwen/Qwen2.5-3B Qwen/Qwen2.5-3B-Instruct",
     (151936, 2048, 11008, 36, 16, 2, 32768), TIED),
    ("qwen2", "qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", (152064, 3584, 18944, 28, 28, 4, 32768), {}),
    ("qwen2", "qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", (152064, 5120, 13824, 48, 40, 8, 32768), {}),
    ("qwen2", "qwen2.5-32b", "Qwen/Qwen2.5-32B-Instruct", (152064, 5120, 27648, 64, 40, 8, 32768), {}),
    ("qwen2", "qwen2.5-72b", "Qwen/Qwen2.5-72B-Instruct", (152064, 8192, 29568, 80, 64, 8, 32768), {}),
    ("qwen3", "qwen3-0.6b", "Qwen/Qwen3-0.6B", (151936, 1024, 3072, 28, 16, 8, 40960), TIED),
    ("qwen3", "qwen3-1.7b", "Qwen/Qwen3-1.7B", (151936, 2048, 6144, 28, 16, 8, 40960), TIED),
    ("qwen3", "qwen3-4b", "Qwen/Qwen3-4B", (151936, 2560, 9728, 36, 32, 8, 40960), TIED),
    ("qwen3", "qwen3-8b", "Qwen/Qwen3-8B", (151936, 4096, 12288, 36, 32, 8, 40960), {}),
    ("qwen3", "qwen3-14b", "Qwen/Qwen3-14B", (151936, 5120, 17408, 40, 40, 8, 40960), {}),
    ("qwen3", "qwen3-32b", "Qwen/Qwen3-32B", (151936, 5120, 25600, 64, 64, 8, 40960), {}),
    ("gemma", "gemma-2b", "google/gemma-2b google/gemma-2b-it", (256000, 2048, 16384, 18, 8, 1, 8192), {}),
    ("gemma", "gemma-7b", "google/gemma-7b google/gemma-7b-it", (256000, 3072, 24576, 28, 16, 16, 8192), {}),
    ("gemma2", "gemma-2-2b", "google/gemma-2-2b google/gemma-2-2b-it", (256000, 2304, 9216, 26, 8, 4, 8192), {}),
    ("gemma2", "gemma-2-9b", "google/gemma-2-9b google/gemma-2-9b-it", (256000, 3584, 14336, 42, 16, 8, 8192), {}),
    ("gemma2", "gemma-2-27b", "google/gemma-2-27b google/gemma-2-27b-it",
     (256000, 4608, 36864, 46, 32, 16, 8192), {"head_dim": 128}),
    ("gemma3_text", "gemma-3-270m", "google/gemma-3-270m google/gemma-3-270m-it",
     (262144, 640, 2048, 18, 4, 1, 32768), {}),
    ("gemma3_text", "gemma-3-1b", "google/gemma-3-1b-pt google/gemma-3-1b-it",
     (262144, 1152, 6912, 26, 4, 1, 32768), {}),
    ("stablelm", "stablelm-3b", "stabilityai/stablelm-3b-4e1t stabilityai/stablelm-zephyr-3b",
     (50304, 2560, 6912, 32, 32, 32, 4096), {}),
    ("stablelm", "stablelm-2-1.6b", "stabilityai/stablelm-2-1_6b stabilityai/stablelm-2-zephyr-1_6b",
     (100352, 2048, 5632, 24, 32, 32, 4096), {"use_qkv_bias": True}),
    ("phi3", "phi-3-mini", "microsoft/Phi-3-mini-4k-instruct",
     (32064, 3072, 8192, 32, 32, 32, 4096), {"sliding_window": 2047}),
]  # fmt: skip
NEOX: list[tuple[str, str, Sizes]] = [  # (vocabulary, width, blocks, heads, context)
    ("pythia-70m", "EleutherAI/pythia-70m EleutherAI/pythia-70m-deduped", (50304, 512, 6, 8, 2048)),
    ("pythia-160m", "EleutherAI/pythia-160m EleutherAI/pythia-160m-deduped", (50304, 768, 12, 12, 2048)),
    ("pythia-410m", "EleutherAI/pythia-410m EleutherAI/pythia-410m-deduped", (50304, 1024, 24, 16, 2048)),
    ("pythia-1b", "EleutherAI/pythia-1b EleutherAI/pythia-1b-deduped", (50304, 2048, 16, 8, 2048)),
    ("pythia-1.4b", "EleutherAI/pythia-1.4b EleutherAI/pythia-1.4b-deduped", (50304, 2048, 24, 16, 2048)),
    ("pythia-2.8b", "EleutherAI/pythia-2.8b EleutherAI/pythia-2.8b-deduped", (50304, 2560, 32, 32, 2048)),
    ("pythia-6.9b", "EleutherAI/pythia-6.9b EleutherAI/pythia-6.9b-deduped", (50432, 4096, 32, 32, 2048)),
    ("pythia-12b", "EleutherAI/pythia-12b EleutherAI/pythia-12b-deduped", (50688, 5120, 36, 40, 2048)),
    ("dolly-v2-3b", "databricks/dolly-v2-3b", (50280, 2560, 32, 32, 2048)),
    ("dolly-v2-7b", "databricks/dolly-v2-7b", (50280, 4096, 32, 32, 2048)),
    ("dolly-v2-12b", "databricks/dolly-v2-12b", (50280, 5120, 36, 40, 2048)),
    ("stablelm-alpha-3b", "stabilityai/stablelm-base-alpha-3b stabilityai/stablelm-tuned-alpha-3b",
     (50688, 4096, 16, 32, 4096)),
    ("stablelm-alpha-7b", "stabilityai/stablelm-base-alpha-7b stabilityai/stablelm-tuned-alpha-7b",
     (50432, 6144, 16, 48, 4096)),
]  # fmt: skip
GPTS: list[tuple[str, str, str, Sizes]] = [  # (vocabulary, width, blocks, heads, context)
    ("gpt2", "gpt2", "openai-community/gpt2", (50257, 768, 12, 12, 1024)),
    ("gpt2", "gpt2-medium", "openai-community/gpt2-medium", (50257, 1024, 24, 16, 1024)),
    ("gpt2", "gpt2-large", "openai-community/gpt2-large", (50257, 1280, 36, 20, 1024)),
    ("gpt2", "gpt2-xl", "openai-community/gpt2-xl", (50257, 1600, 48, 25, 1024)),
    ("gptj", "gpt-j-6b", "EleutherAI/gpt-j-6b nomic-ai/gpt4all-j", (50400, 4096, 28, 16, 2048)),
]  # fmt: skip
OPTS: list[tuple[str, str, Sizes, Settings]] = [  # (vocabulary, width, blocks, heads); GPT-3 is laid out like them
    ("gpt3-175b", "", (50257, 12288, 96, 96), {}),
    ("opt-125m", "facebook/opt-125m", (50272, 768, 12, 12), {}),
    ("opt-350m", "facebook/opt-350m", (50272, 1024, 24, 16),
     {"word_embed_proj_dim": 512, "do_layer_norm_before": False}),
    ("opt-1.3b", "facebook/opt-1.3b", (50272, 2048, 24, 32), {}),
    ("opt-2.7b", "facebook/opt-2.7b", (50272, 2560, 32, 32), {}),
    ("opt-6.7b", "facebook/opt-6.7b", (50272, 4096, 32, 32), {}),
    ("opt-13b", "facebook/opt-13b", (50272, 5120, 40, 40), {}),
]  # fmt: skip
ONE_TYPE = {"type_vocab_size": 1}
BERTS: list[tuple[str, str, str, Sizes, Settings]] = [  # (vocabulary, width, blocks, heads, positions)
    ("bert", "bert-base-uncased", "google-bert/bert-base-uncased", (30522, 768, 12, 12, 512), {}),
    ("bert", "bert-base-cased", "google-bert/bert-base-cased", (28996, 768, 12, 12, 512), {}),
    ("bert", "bert-large-uncased", "google-bert/bert-large-uncased", (30522, 1024, 24, 16, 512), {}),
    ("roberta", "roberta-base", "FacebookAI/roberta-base", (50265, 768, 12, 12, 514), ONE_TYPE),
    ("roberta", "roberta-large", "FacebookAI/roberta-large", (50265, 1024, 24, 16, 514), ONE_TYPE),
    ("xlm-roberta", "xlm-roberta-base", "FacebookAI/xlm-roberta-base", (250002, 768, 12, 12, 514), ONE_TYPE),
    ("xlm-roberta", "xlm-roberta-large", "FacebookAI/xlm-roberta-large", (250002, 1024, 24, 16, 514), ONE_TYPE),
]  # fmt: skip
CONVOLVED = {"conv_kernel_size": 3}
DEBERTAS: list[tuple[str, str, Sizes, Settings]] = [  # (width, blocks, heads)
    ("deberta-v3-xsmall", "microsoft/deberta-v3-xsmall", (384, 12, 6), {}),
    ("deberta-v3-small", "microsoft/deberta-v3-small", (768, 6, 12), {}),
    ("deberta-v3-base", "microsoft/deberta-v3-base", (768, 12, 12), {}),
    ("deberta-v3-large", "microsoft/deberta-v3-large", (1024, 24, 16), {}),
    ("deberta-v2-xlarge", "microsoft/deberta-v2-xlarge", (1536, 24, 24), CONVOLVED),
    ("deberta-v2-xxlarge", "microsoft/deberta-v2-xxlarge", (1536, 48, 24), CONVOLVED),
]


def _t5(width: int, heads: int, size: int, inner: int, blocks: int, *, gated: bool = False) -> Settings:
    return {
        "vocab_size": 32128, "d_model": width, "num_heads": heads, "d_kv": size, "d_ff": inner, "num_layers": blocks,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }  # fmt: skip


def _bart(vocabulary: int, width: int, blocks: int, heads: int) -> Settings:
    stacks = {
        f"{stack}_{key}": value
        for stack in ("encoder", "decoder")
        for key, value in (("layers", blocks), ("ffn_dim", 4 * width), ("attention_heads", heads))
    }
    return {"vocab_size": vocabulary, "d_model": width, "max_position_embeddings": 1024} | stacks


def _seen(width: int, blocks: int, heads: int, image: int, patch: int, **more: Any) -> Settings:
    return {
        "hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads, "image_size": image,
        "patch_size": patch,
    } | more  # fmt: skip


SEQ2SEQ: list[tuple[str, str, str, Settings]] = [
    ("t5", "t5-small", "google-t5/t5-small", _t5(512, 8, 64, 2048, 6)),
    ("t5", "t5-base", "google-t5/t5-base", _t5(768, 12, 64, 3072, 12)),
    ("t5", "t5-large", "google-t5/t5-large", _t5(1024, 16, 64, 4096, 24)),
    ("t5", "t5-3b", "google-t5/t5-3b", _t5(1024, 32, 128, 16384, 24)),
    ("t5", "t5-11b", "google-t5/t5-11b", _t5(1024, 128, 128, 65536, 24)),
    ("t5", "flan-t5-small", "google/flan-t5-small", _t5(512, 6, 64, 1024, 8, gated=True)),
    ("t5", "flan-t5-base", "google/flan-t5-base", _t5(768, 12, 64, 2048, 12, gated=True)),
    ("t5", "flan-t5-large", "google/flan-t5-large", _t5(1024, 16, 64, 2816, 24, gated=True)),
    ("t5", "flan-t5-xl", "google/flan-t5-xl", _t5(2048, 32, 64, 5120, 24, gated=True)),
    ("t5", "flan-t5-xxl", "google/flan-t5-xxl", _t5(4096, 64, 64, 10240, 24, gated=True)),
    ("bart", "bart-base", "facebook/bart-base", _bart(50265, 768, 6, 12)),
    ("bart", "bart-large", "facebook/bart-large", _bart(50265, 1024, 12, 16)),
]
VISIONS: list[tuple[str, str, str, Settings]] = [
    ("vit", "vit-base-patch16-224", "google/vit-base-patch16-224 google/vit-base-patch16-224-in21k",
     _seen(768, 12, 12, 224, 16, intermediate_size=3072)),
    ("vit", "vit-large-patch16-224", "google/vit-large-patch16-224 google/vit-large-patch16-224-in21k",
     _seen(1024, 24, 16, 224, 16, intermediate_size=4096)),
    ("dinov2", "dinov2-small", "facebook/dinov2-small", _seen(384, 12, 6, 518, 14)),
    ("dinov2", "dinov2-base", "facebook/dinov2-base", _seen(768, 12, 12, 518, 14)),
    ("dinov2", "dinov2-large", "facebook/dinov2-large", _seen(1024, 24, 16, 518, 14)),
    ("dinov2", "dinov2-giant", "facebook/dinov2-giant", _seen(1536, 40, 24, 518, 14, use_swiglu_ffn=True)),
]  # fmt: skip
