"""With which backend a run computes: chosen at its beginning, written down, and kept when the run is resumed."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rankwise
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, ModelError, RunError
from rankwise.kernels.regions import REGIONS
from rankwise.planning import plan as plans
from rankwise.runs.records import StatusMessage, StepRecord, WarningMessage
from rankwise.training import backend as backends
from rankwise.training import workload

COMPILER = any(shutil.which(name) for name in ("g++", "clang++", "cl"))


class Stopped(Exception):
    pass


class Listener:
    """Hears all, and stops a run after `last` steps."""

    def __init__(self, last: int = 100) -> None:
        self.last = last
        self.said: list[str] = []
        self.losses: dict[int, float] = {}

    def __call__(self, event: object) -> None:
        if isinstance(event, StatusMessage | WarningMessage):
            self.said.append(event.text)
        if isinstance(event, StepRecord):
            self.losses[event.step] = event.loss
            if event.step > self.last:
                raise Stopped


@contextmanager
def broken(cache):
    """A compiler that is not there shows itself at the first call."""
    kept = [(region, region.compiled) for region in REGIONS]

    def fail(*given):
        raise RuntimeError("no C++ compiler")

    for region, _ in kept:
        region.compiled = fail
    try:
        yield
    finally:
        for region, before in kept:
            region.compiled = before


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} it is"}]}
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = TrainingConfig(steps=4, batch_size=4, checkpoint_steps=2)
    return rankwise.Experiment(model=str(tiny_folder), data="rows.jsonl", training=training, run="small")


def compile_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let a training that takes so long be long enough, by the forecast and by what is measured."""
    for module in (backends, plans):
        monkeypatch.setattr(module, "COMPILED_AFTER", seconds)


def test_a_short_run_is_not_compiled(small):
    assert rankwise.train(small).manifest.backend == "fused"


@pytest.mark.parametrize(("quick", "compiled"), [(1e9, True), (1e-9, False)])
def test_where_a_comparison_takes_long_a_run_must_be_longer_to_be_compiled(small, monkeypatch, quick, compiled):
    tried = []
    compile_after(monkeypatch, 1e-6)
    monkeypatch.setattr(backends, "QUICK", quick)
    monkeypatch.setattr(backends, "_compiles", lambda work, required: tried.append(work) or False)
    assert rankwise.train(small).manifest.backend == "fused"
    assert bool(tried) == compiled


def test_a_comparison_that_takes_long_is_announced_before_it(small, monkeypatch):
    quick, slow = Listener(), Listener()
    rankwise.train(small, callback=quick)
    monkeypatch.setattr(backends, "LARGE", 1)
    rankwise.train(small.model_copy(update={"run": "large"}), callback=slow)
    announced, outcome = (
        next(number for number, text in enumerate(slow.said) if begins in text)
        for begins in ("comparing the fused backend", "using the fused backend")
    )
    assert announced < outcome and not any("comparing" in text for text in quick.said)


def test_where_compiling_fails_a_run_is_fused_and_says_so(small, monkeypatch):
    compile_after(monkeypatch, 0.0)
    monkeypatch.setattr(backends, "compiled_regions", broken)
    listener = Listener()
    assert rankwise.train(small, callback=listener).manifest.backend == "fused"
    assert any("not compiled" in text for text in listener.said)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")
def test_a_long_run_is_compiled_and_goes_on_so(small, monkeypatch):
    compile_after(monkeypatch, 0.0)
    whole, first, second = Listener(), Listener(last=2), Listener()
    backend = rankwise.train(small.model_copy(update={"run": "whole"}), callback=whole).manifest.backend
    if backends.NO_COMPILER in whole.said:
        pytest.skip("torch's compiler does not work here, and the run said so")
    assert backend == "compiled"
    assert any("compiled in" in text for text in whole.said)
    with pytest.raises(Stopped):
        rankwise.train(small, callback=first)
    with monkeypatch.context() as context:
        context.setattr(backends, "compiled_regions", broken)
        with pytest.raises(RunError, match=r"C\+\+ compiler, does not work on this machine"):
            rankwise.train(small, resume=True)
    compile_after(monkeypatch, 1e9)
    assert rankwise.train(small, resume=True, callback=second).manifest.backend == "compiled"
    assert first.losses | second.losses == whole.losses and set(second.losses) == {3, 4}


def test_memory_is_counted_with_the_dropout_that_a_run_has(small, monkeypatch):
    found = []
    monkeypatch.setattr(workload, "recomputed", lambda needed, free, blocks, least: found.append(needed) or 0)
    monkeypatch.setattr(backends, "available_memory", lambda: 10_000)  # where there is room, it is not measured
    for number, dropout in enumerate((0.0, 0.3)):
        adapter = rankwise.LoraConfig(rank=8, dropout=dropout)
        rankwise.train(small.model_copy(update={"run": f"run-{number}", "adapter": adapter}))
    assert found[1] > 1.2 * found[0]


@pytest.mark.parametrize("kind", ["fused", "eager"])
def test_what_is_surely_enough_room_is_not_measured_further_and_decides_the_same(small, kind, monkeypatch):
    """The most that a small batch allows for is at least what is measured."""
    needed = []
    count = workload._count

    def both(work, blocks, free, most, *least):
        for room in (workload.Room(work.largest, free), workload.NOWHERE):
            needed.append(most(room).of(work.largest))
        return count(work, blocks, free, most, *least)

    monkeypatch.setattr(workload, "_count", both)
    settings = small.training.model_copy(update={"backend": kind})
    rankwise.train(small.model_copy(update={"training": settings}))
    assert needed[0] > needed[1] > 0


@pytest.mark.parametrize("settings", [{}, {"backend": "eager"}], ids=["fused", "eager"])
def test_where_memory_is_short_blocks_recompute_and_nothing_else_changes(small, settings, monkeypatch):
    small = small.model_copy(update={"training": small.training.model_copy(update=settings)})
    usual = rankwise.train(small.model_copy(update={"run": "usual"}))
    for module in (workload, backends):
        monkeypatch.setattr(module, "available_memory", lambda: 10_000)
    listener = Listener()
    tight = rankwise.train(small, callback=listener)
    assert any("blocks use activation checkpointing" in text for text in listener.said)
    weights = [(run.folder / "adapter" / "adapter_model.safetensors").read_bytes() for run in (usual, tight)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("settings", [{}, {"backend": "eager"}], ids=["fused", "eager"])
def test_a_row_of_the_embedding_that_nothing_reads_must_be_numbers_too(small, settings, tmp_path):
    file = shutil.copytree(small.model.name, tmp_path / "spoiled") / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][9] = float("nan")
    tensors.setdefault("lm_head.weight", torch.ones_like(tensors["model.embed_tokens.weight"]))
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((file.parent / "config.json").read_text()) | {"tie_word_embeddings": False}
    (file.parent / "config.json").write_text(json.dumps(config))
    model = small.model.model_copy(update={"name": str(file.parent)})
    spoiled = small.model_copy(update={"model": model, "training": small.training.model_copy(update=settings)})
    with pytest.raises(ModelError, match=r"NaN or infinite: model\.embed_tokens\.weight"):
        rankwise.train(spoiled)


@pytest.mark.parametrize("settings", [{}, {"backend": "eager"}], ids=["fused", "eager"])
def test_as_many_blocks_recompute_as_the_setting_says_and_nothing_else_changes(small, settings, monkeypatch):
    found = []
    blocks, loss = backends.activation_checkpointing, backends.FusedLoss

    def plain(given):
        found.append(len(given))
        return blocks(given)

    def fast(module, **named):
        found.extend([named["recomputed"]] if "recomputed" in named else [])
        return loss(module, **named)

    monkeypatch.setattr(backends, "activation_checkpointing", plain)
    monkeypatch.setattr(backends, "FusedLoss", fast)
    weights = []
    for asked in (0, 1, 99):
        training = small.training.model_copy(update={"activation_checkpointing": asked, **settings})
        run = rankwise.train(small.model_copy(update={"run": f"run-{asked}", "training": training}))
        weights.append((run.folder / "adapter" / "adapter_model.safetensors").read_bytes())
    assert found == [0, 1, 2]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize(
    "spec",
    [rankwise.LoraConfig(layers=(1,)), rankwise.AdaLora(budget="1 triplets", final=0.6)],
)
def test_a_run_goes_on_as_if_never_stopped(small, spec):
    """Over the top blocks, whose prefix is kept; and where the lower blocks lost all of their ranks before the stop."""
    small = small.model_copy(update={"adapter": spec})
    whole, first, second = Listener(), Listener(last=2), Listener()
    assert rankwise.train(small.model_copy(update={"run": "whole"}), callback=whole).manifest.backend == "fused"
    with pytest.raises(Stopped):
        rankwise.train(small, callback=first)
    rankwise.train(small, resume=True, callback=second)
    assert first.losses | second.losses == whole.losses and set(second.losses) == {3, 4}


def test_a_backend_that_is_named_is_taken_or_refused(small, monkeypatch):
    def with_backend(name, **update):
        training = small.training.model_copy(update={"backend": name})
        return small.model_copy(update={"run": name, "training": training, **update})

    for name in ("eager", "fused"):
        assert rankwise.train(with_backend(name)).manifest.backend == name
    with pytest.raises(ConfigError, match=r"training.backend is fused.*trains the model's own weights"):
        rankwise.train(with_backend("fused", run="full", adapter=rankwise.FullConfig()))
    assert not (Path("runs") / "full").exists()
    monkeypatch.setattr(backends, "compiled_regions", broken)
    with pytest.raises(ConfigError, match=r"training.backend is compiled.*not compiled"):
        rankwise.train(with_backend("compiled"))
