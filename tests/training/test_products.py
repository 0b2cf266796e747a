"""Products in int8: a run decides once, says so, keeps it, and is computed later as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rankwise
from kit.gguf_models import as_gguf, model_in
from kit.interrupted import interrupt, whole_and_resumed
from rankwise.base.loading import load
from rankwise.base.precision import multiplies_int8
from rankwise.commands.export import export
from rankwise.commands.train import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, RunError
from rankwise.forward.agreement import Computed, distance, gradients_of
from rankwise.forward.reference import random_documents
from rankwise.inference.tuned_model import load_tuned
from rankwise.kernels.quantized.formats import Int8, Int8Products, is_compiled, weights_for_int8
from rankwise.objectives.registry import objective_named
from rankwise.training import backend as choices

able = pytest.mark.skipif(not (multiplies_int8() and is_compiled()), reason="this machine has no such products")


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))


def experiment(folder, run="run", quantize="int8", **training):
    return rankwise.Experiment.model_validate({
        "model": {"name": str(folder), "quantize": quantize, "dtype": "bfloat16"}, "data": "rows.jsonl", "run": run,
        "training": {"steps": 4, "batch_size": 4, "matmul": "int8", "checkpoint_steps": 2, **training},
    })  # fmt: skip


def weights_of(trained):
    return next(trained.result.glob("*.safetensors")).read_bytes()


def formats(module):
    return {name: type(weight.format) for name, weight in weights_for_int8(module).items()}


@able
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_run_says_what_it_computed_and_is_loaded_so(rows, tiny_folder, backend):
    trained = train(experiment(tiny_folder, backend=backend))
    found = trained.manifest.products
    assert found is not None and 0 < found.change < 0.2
    assert {*found.outliers, *found.unpacked} == set(weights_for_int8(trained.model.module))
    model = load_tuned("run").model.module
    assert {name for name, kind in formats(model).items() if kind is Int8Products} == set(found.outliers)
    for name, weight in weights_for_int8(model).items():
        assert getattr(weight.format, "outliers", ()) == found.outliers.get(name, ())


@able
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(rows, tiny_folder, backend):
    whole, resumed = whole_and_resumed(lambda run: experiment(tiny_folder, run, backend=backend), 3)
    assert whole == resumed


@able
@pytest.mark.parametrize("quantize", ["nf4", "auto"])
def test_a_base_in_other_formats_has_a_copy_in_int8(rows, tmp_path, quantize):
    """NF4, and a GGUF file, where the head and the embeddings stay what they are."""
    base = model_in(tmp_path / "base", "qwen2")
    if quantize == "auto":
        base = as_gguf(base, tmp_path / "base.gguf", "q8_0")
    whole, resumed = whole_and_resumed(lambda run: experiment(base, run, quantize=quantize), 3)
    assert whole == resumed
    model = load_tuned("run-whole").model.module
    assert Int8Products in formats(model).values() and "lm_head" not in formats(model)
    assert {len(one.parts) - len(type(one.format.original).part_names) for one in weights_for_int8(model).values()} == {
        2
    }


@able
def test_a_run_does_not_go_on_with_other_products(rows, tiny_folder, monkeypatch):
    interrupt(experiment(tiny_folder), 3)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(RunError, match="products in int8, which is not possible here: this processor is not faster"):
        train(experiment(tiny_folder), resume=True)


@able
def test_a_column_far_above_the_others_is_kept_apart(rows, tiny_folder):
    model = load(ModelConfig(name=str(tiny_folder), quantize="int8", dtype="bfloat16"))
    with torch.no_grad():
        layer = model.module.model.layers[1]
        layer.input_layernorm.weight[3] = 300  # and is hardly used
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.weight.parts[0][:, 3] = 0
    trained = train(experiment(tiny_folder), model=model)
    found = trained.manifest.products
    for name in ("q_proj", "k_proj", "v_proj"):
        assert 3 in found.outliers[f"model.layers.1.self_attn.{name}"]
    assert {len(columns) for columns in found.outliers.values()} == {choices.OUTLIERS} and found.change < 0.02


@able
@pytest.mark.parametrize("damaged", ["q_proj down_proj", "down_proj", ""])
def test_what_small_errors_of_layers_add_up_to_is_bounded(rows, tiny_folder, monkeypatch, damaged):
    """With a row of down_proj far above the others each layer's outputs are near those of its unpacked weights, and the
    gradients that come back through it are not. Of a usual model outputs decide, where less is allowed."""
    base = shutil.copytree(tiny_folder, Path("base"))
    weights = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        if damaged and name.endswith(tuple(f"{one}.weight" for one in damaged.split())):
            weight[(slice(None), 3) if "q_proj" in name else 5] *= 1e4
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    if not damaged:
        monkeypatch.setattr(choices, "LARGEST_CHANGE", 0.003)
    trained = train(experiment(base, backend="eager"))
    found, module = trained.manifest.products, trained.model.module
    assert found.unpacked and found.change <= choices.LARGEST_CHANGE
    assert any("products of all layers in int8 would change" in one for one in trained.manifest.warnings)
    (batch,) = objective_named("causal-lm").loss.batches(
        random_documents(90, [40] * 4, torch.Generator().manual_seed(0)), 512
    )
    computed = []
    for products in (found, None):
        choices.use_products(module, products)
        gradients = gradients_of(objective_named("causal-lm").loss(module, batch), trained.trainable.parameters())
        computed.append(Computed(objective_named("causal-lm").loss.predict(module, batch).detach(), gradients))
    apart = distance(*computed)
    assert apart.within(0.1, 0.1), apart


@able
def test_a_layer_that_would_lose_too_much_is_computed_unpacked(rows, tiny_folder, monkeypatch):
    monkeypatch.setattr(choices, "LARGEST_ERROR", 0.0)
    trained = train(experiment(tiny_folder))
    assert trained.manifest.products.outliers == {} and set(formats(trained.model.module).values()) == {Int8}


def test_int8_is_refused_where_it_is_asked_for_and_cannot_be(rows, tiny_folder, monkeypatch):
    with pytest.raises(ConfigError, match="no weights in int8"):
        train(experiment(tiny_folder, quantize="none"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ConfigError, match="not faster in int8"):
        train(experiment(tiny_folder, "other"))


@able
def test_int8_is_taken_where_it_is_faster(rows, tiny_folder, monkeypatch):
    def trained(run, **training):
        found = train(experiment(tiny_folder, run, **training))
        return found.manifest.products, weights_of(found)

    usual, asked, unpacked = (trained(name, matmul=name) for name in ("auto", "int8", "bfloat16"))
    assert usual == asked and usual[0] is not None and unpacked[0] is None and usual[1] != unpacked[1]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert trained("slower", matmul="auto") == unpacked


@able
def test_a_copy_is_made_where_it_leaves_most_of_the_memory_or_is_asked_for(rows, tmp_path, monkeypatch):
    base = model_in(tmp_path / "base", "qwen2")
    module = load(ModelConfig(name=str(base), quantize="nf4")).module
    copied = sum(one.numel() for one in weights_for_int8(module).values())
    for room, products, taken in ((4, "auto", True), (3, "auto", False), (3, "int8", True)):
        monkeypatch.setattr(choices, "available_memory", lambda room=room: room * copied)
        found = train(experiment(base, f"{products}-{room}", "nf4", matmul=products, backend="eager"))
        assert (found.manifest.products is not None) == taken


@able
def test_on_another_processor_a_run_says_what_its_result_is_computed_by(rows, tiny_folder, monkeypatch):
    train(experiment(tiny_folder))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    told = []
    model = load_tuned("run", lambda event: told.append(str(event))).model.module
    assert set(formats(model).values()) == {Int8}
    assert any("trained with products in int8" in line for line in told)


@able
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_an_export_is_held_against_the_model_without_them_and_says_so(rows, tmp_path, quantize):
    train(experiment(model_in(tmp_path / "base", "qwen2"), quantize=quantize, learning_rate=0.01))
    told = []
    exported = export("run", "out", "merged", dtype="float32", callback=lambda event: told.append(str(event)))
    assert exported.merged is not None and exported.merged.logits_difference < 1e-4
    assert any("trained with products in int8, which other programs do not have" in line for line in told)


@able
def test_a_model_that_was_given_learns_what_a_fresh_one_does(rows, tiny_folder):
    """Also what EVA's start reads of the base before the run's own products are chosen."""
    model = load(ModelConfig(name=str(tiny_folder), quantize="int8", dtype="bfloat16"))
    train(experiment(tiny_folder, "first"), model=model).trainable.remove()
    eva = LoraConfig(rank=2, start="eva")
    again, fresh = (
        train(experiment(tiny_folder, run).model_copy(update={"adapter": eva}), model=given)
        for run, given in (("again", model), ("fresh", None))
    )
    assert weights_of(again) == weights_of(fresh)


@able
def test_a_run_does_not_go_on_under_a_limit_that_has_no_int8(rows, tiny_folder):
    interrupt(experiment(tiny_folder), 3)
    limited = experiment(tiny_folder)
    limited = limited.model_copy(update={"model": limited.model.model_copy(update={"memory": "16GB"})})
    with pytest.raises(RunError, match="products in int8, which is not possible here: the base has no weights"):
        train(limited, resume=True)
