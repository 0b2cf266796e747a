"""Whole trainings of every kind that a user can name, over tiny models in float64, by one process or several.

`prepare_home(folder)` writes the models and rows, `run_case(name)` trains in the folder that is current, and `Breadth`
is what a training came to. NARROW have no float64, since weights are stored in fewer bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conftest import chat_tokenizer, tiny_model
from kit.classifiers import encoder_folder, labelled, write_rows
from kit.library import rows as questions
from kit.quantized_models import wide_model
from kit.sequence_models import lands, sequence_folder
from kit.tagged import tagger_folder, tokenised
from kit.vision_models import save_folder
from kit.worlds import patched
from rankwise.base import loading
from rankwise.base.precision import Precision
from rankwise.commands import train as train_module
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.errors import TrainingError
from rankwise.training import recording, settling, trainer
from rankwise.training.extras import budgets
from rankwise.training.training import Training
from rankwise.training.world import join

TEXT = "The river runs through the town, and on its banks stand houses of stone that were built long ago. " * 40
STEPS = 4
TIMES = ("seconds", "forecast_seconds", "resident_bytes", "peak_rss_bytes", "train_seconds", "tokens_per_second",
         "images_per_second")  # fmt: skip
Settings = dict[str, Any]


def prepare_home(home: Path) -> None:
    """Models and rows of every kind."""
    tokenizer = chat_tokenizer()
    for name, model in (("llama", tiny_model("llama", len(tokenizer))), ("wide", wide_model(vocab=len(tokenizer))),
                        ("experts", _experts(len(tokenizer)))):  # fmt: skip
        model.save_pretrained(home / name)  # pyright: ignore[reportCallIssue]
        tokenizer.save_pretrained(home / name)
    encoder_folder(home / "bert")
    tagger_folder(home / "tagger")
    sequence_folder("t5", home / "t5")
    save_folder("resnet", home / "resnet")
    (home / "rows.jsonl").write_text(questions(11))
    (home / "many.jsonl").write_text(questions(40))
    (home / "others.jsonl").write_text(questions(5, 50))
    words = ["fox", "dog", "town", "land", "river", "glass", "radio", "brown", "lazy"]
    asked = [
        {"q": f"What is {words[n % 9]} {words[n // 3 % 9]}?", "choices": [words[n % 7], words[(n + 5) % 9]],
         "gold": n % 2}
        for n in range(40)
    ]  # fmt: skip
    write_rows(home / "choices.jsonl", asked)
    (home / "choices.yaml").write_text(
        'task: choices\ndata: choices.jsonl\nask: "{q}"\nscore: [accuracy]\nchat: false\n'
    )
    (home / "text.txt").write_text(TEXT)
    write_rows(home / "labelled.jsonl", labelled(13))
    several = [{"text": f"the film is {word}", "label": names} for word, names in (
        ("bright", ["good", "light"]), ("dull", ["bad"]), ("kind", ["good"]), ("cold", ["bad", "light"]), ("warm", []),
    )]  # fmt: skip
    write_rows(home / "several.jsonl", several * 3)
    write_rows(home / "tagged.jsonl", tokenised(13))
    write_rows(home / "lands.jsonl", lands(11))
    tokens = [{"prompt": f"Where is {n}?", "completion": "In <city>" + ", since <date>" * (n % 3)} for n in range(11)]
    write_rows(home / "tokens.jsonl", tokens)
    pairs = [
        {"prompt": f"What is {n}?" + " Please." * (n % 3), "chosen": "It is so." * (1 + n % 4), "rejected": "No."}
        for n in range(13)
    ]  # fmt: skip
    write_rows(home / "pairs.jsonl", pairs)
    pixels = np.random.default_rng(0).integers(0, 255, (11, 40, 40, 3), dtype=np.uint8)
    np.savez(home / "images.npz", images=pixels, labels=np.arange(11) % 3)


def _experts(vocabulary: int) -> nn.Module:
    torch.manual_seed(0)
    config: Any = CONFIG_MAPPING["qwen3_moe"]
    return AutoModelForCausalLM.from_config(config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=32, moe_intermediate_size=32, head_dim=8,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2,
    ))  # fmt: skip


def of(name: str, rows: str, /, **changes: Settings | str) -> Settings:
    given: Settings = {
        "model": {"name": name}, "data": {"path": rows, "held_out": 3}, "adapter": {"rank": 2}, "run": "r",
        "training": {"steps": STEPS, "batch_size": 5, "learning_rate": 1e-2, "backend": "eager"},
        "validation": {"steps": 2},
    }  # fmt: skip
    for part, value in changes.items():
        given[part] = value if isinstance(value, str) or "method" in value else given.get(part, {}) | value
    return given


SMALL = {"max_batch_tokens": 100}
"""So that a step has several micro-batches."""
TO_TEXT: Settings = {"text": "text.txt", "tokens": 24, "weight": 0.5}
ANSWERS: Settings = {"steps": 2, "scores": ("chrf",), "answers": 3, "max_new_tokens": 8}
BACK_OFF: Settings = {"on_divergence": "back-off", "checkpoint_steps": 4, "learning_rate": 0.02, "batch_size": 2}
LIFTED = {"back off": (26, math.inf), "tune": (math.inf, 10)}
"""Runs whose losses are high from a step on, until the learning rate is halved, and the last step of a run whose trials
are what is compared."""
CASES: dict[str, Settings] = {
    "images": of("resnet", "images.npz", adapter={"method": "full"}, images={"augmentation": "crop"}),
    "classes, weighted": of("bert", "labelled.jsonl", classification={"class_weights": "balanced"}),
    "classes, balanced": of("bert", "labelled.jsonl", classification={"sampling": "balanced"}),
    "several labels": of("bert", "several.jsonl", classification={"targets": "several"}),
    "tags": of("tagger", "tagged.jsonl"),
    "t5": of("t5", "lands.jsonl", adapter={"method": "adalora", "budget": 2}),
    "replay": of("llama", "rows.jsonl", training={"replay": {"share": 0.3, "data": {"path": "others.jsonl"}}}),
    "new tokens": of("llama", "tokens.jsonl", model={"new_tokens": ("<city>", "<date>")}),
    "experts": of("experts", "rows.jsonl", adapter={"targets": ("experts.gate_up_proj", "experts.down_proj")}),
    "dora": of("llama", "rows.jsonl", adapter={"rank": 2, "dora": True}),
    "eva": of("llama", "rows.jsonl", adapter={"rank": 2, "start": "eva"}),
    "answers": of("llama", "rows.jsonl", validation=ANSWERS),
    "dpo": of("llama", "pairs.jsonl", objective="preference", training=SMALL),
    "orpo": of("llama", "pairs.jsonl", objective="preference", preference={"loss": "orpo"}, training=SMALL),
    "anchor": of("llama", "rows.jsonl", training={"anchor": TO_TEXT} | SMALL),
    "anchor, adalora, fused": of(
        "llama", "rows.jsonl", adapter={"method": "adalora", "budget": 2, "interval": 1},
        training={"anchor": TO_TEXT, "steps": 8, "backend": "fused"},
    ),
    "forgetting": of("llama", "rows.jsonl", training={
        "anchor": TO_TEXT | {"forget_at_most": 0.003}, "steps": 8, "learning_rate": 5e-2,
    }),
    "accuracy": of("llama", "rows.jsonl", training={"learning_rate": 0.1, "anchor": TO_TEXT | {
        "forget_at_most": "3%", "tasks": ("choices.yaml",), "task_rows": 40,
    }}),
    "tune": of(
        "llama", "many.jsonl", data={"held_out": 9},
        training={"learning_rate": "tune", "steps": 300, "batch_size": 8}, validation={"steps": 300},
    ),
    "back off": of("llama", "rows.jsonl", training=BACK_OFF | {"steps": 36}, validation={"steps": 40}),
}  # fmt: skip
WIDE = {"quantize": "int8", "dtype": "float32"}
NARROW: dict[str, Settings] = {
    "int8": of("wide", "rows.jsonl", model=WIDE, training={"matmul": "bfloat16"}),
    "products in int8": of("wide", "rows.jsonl", model=WIDE, training={"learning_rate": 1e-4}),
}
EVERY = CASES | NARROW


@dataclass(frozen=True)
class Breadth:
    """What a training came to: its weights and statistics, and the records of its run without times."""

    tensors: dict[str, Tensor]
    records: list[dict[str, Any]]
    results: dict[str, Any]


@contextmanager
def in_float64() -> Iterator[None]:
    """Whatever would be in float32 is in float64."""
    precision = Precision(torch.device("cpu"), torch.float64, "by the test")

    def doubled(real: Any) -> Any:
        def module_of(*given: Any) -> Any:
            module, *others = real(*given)
            return module.double(), *others  # timm's are read in float32

        return module_of

    with ExitStack() as stack:
        stack.enter_context(patched(loading, "choose_precision", lambda real: lambda spec: precision))
        stack.enter_context(patched(loading, "_module", doubled))
        stack.enter_context(patched(nn.Module, "float", lambda real: nn.Module.double))
        Tensor.float = Tensor.double
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
            del Tensor.float


def lifted(first: float, last: float) -> Any:
    """Losses are high from step `first` on, while the learning rate is; after step `last` the run ends."""

    def lift(real: Any) -> Any:
        def step(state: Any, *given: Any) -> Any:
            record, ranks = real(state, *given)
            high = record.step >= first and max(map(state.rate, range(9))) > 0.015
            state.ended = state.ended or record.step == last
            return replace(record, loss=record.loss + 1000.0 * high), ranks

        return step

    return lift


def run_case(name: str, run: str | None = None) -> Breadth:
    """Train as the case says, in the folder that is current."""
    settings = EVERY[name] | {"run": run or name.replace(",", "").replace(" ", "-")}
    seen: list[dict[str, Tensor]] = []

    def remembering(real: Any) -> Any:
        def results(run: Training, *given: Any) -> Any:
            statistics = {key: value for key, value in run.trainable.model.named_buffers() if "running" in key}
            learned = run.trainable.named_parameters() | statistics
            seen.append({key: value.detach().clone() for key, value in learned.items()})
            return real(run, *given)

        return results

    with ExitStack() as stack:
        stack.enter_context(in_float64() if name in CASES else ExitStack())
        stack.enter_context(patched(recording, "results_of", remembering))
        stack.enter_context(patched(settling, "foresee", lambda real: lambda *given: None))
        stack.enter_context(patched(budgets, "LENGTH", lambda real: 24))
        stack.enter_context(patched(train_module, "write_page", lambda real: lambda *given: Path()))
        if name in LIFTED:
            stack.enter_context(patched(trainer, "optimizer_step", lifted(*LIFTED[name])))
        trained = train(Experiment(**settings), force_memory=True)
    rows = map(json.loads, (trained.run.folder / "metrics.jsonl").read_text().splitlines())
    records = [without_times(row) for row in rows]
    manifest = trained.run.manifest().model_dump(mode="json")
    facts = {key: manifest[key] for key in ("results", "tuning", "back_offs", "learning_rate", "anchor", "backend")}
    return Breadth(seen[-1], records, without_times(facts))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def run_all(folder: Path, given: Sequence[tuple[str, str | None]]) -> None:
    """In each process of several: the named cases, with a mistake where one is named, into files of its rank. `folder`
    is a home."""
    from kit.breadth_mistakes import MISTAKES

    os.environ["RANKWISE_CACHE"] = str(folder / "cache-several")
    world = join()
    for name, mistake in given:
        place = folder / f"{mistake or name}-{world.rank}"
        with ExitStack() if mistake is None else MISTAKES[mistake][1]():
            try:
                breadth = run_case(name, mistake and f"mistake-{mistake.replace(' ', '-')}")
            except TrainingError as error:
                if mistake is None:
                    raise
                place.with_suffix(".json").write_text(json.dumps(str(error)))
                continue
        save_file(breadth.tensors, place.with_suffix(".safetensors"))
        place.with_suffix(".json").write_text(json.dumps([breadth.records, breadth.results]))


def breadth_of(folder: Path, name: str, rank: int) -> Breadth | str:
    """The sentence with which a training ended, where it has no result."""
    told = json.loads((folder / f"{name}-{rank}.json").read_text())
    return told if isinstance(told, str) else Breadth(load_file(folder / f"{name}-{rank}.safetensors"), *told)


def distance(one: Breadth, other: Breadth) -> float:
    """The largest relative difference of any weight, and of any number that was recorded."""
    assert one.tensors.keys() == other.tensors.keys()
    apart = [0.0]
    for name, value in one.tensors.items():
        assert value.shape == other.tensors[name].shape, name
        apart.append(float((value - other.tensors[name]).abs().max() / value.abs().max().clamp_min(1e-300)))
    assert len(one.records) == len(other.records)
    return max(*apart, *(difference(*both) for both in zip(one.records, other.records, strict=True)),
               difference(one.results, other.results))  # fmt: skip


def difference(one: Any, other: Any) -> float:
    """Of two records, relative; infinite where anything but a number differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(abs(one), abs(other), 1e-6)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(*both) for both in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else math.inf
