"""Which layers are chosen; and that whatever matches nothing is said, with what is near."""

from __future__ import annotations

import pytest
from torch import nn

from conftest import tiny_model
from rankwise.adapters.targets import choose, tables_of_the_head
from rankwise.config.adapters import LoraConfig
from rankwise.config.modules import layer_number
from rankwise.errors import TargetError
from rankwise.methods.inject import add_adapter, inject


def paths(architecture: str, **spec: object) -> list[str]:
    return [choice.path for choice in choose(tiny_model(architecture), LoraConfig(**spec))]


def leaves(architecture: str, **spec: object) -> set[str]:
    return {path.rpartition(".")[2] for path in paths(architecture, **spec)}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("gptj", {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"}),
        ("bert", {"query", "key", "value", "dense"}),
    ],
)
def test_all_linear_is_every_linear_layer_but_the_output_head(architecture: str, expected: set[str]) -> None:
    assert leaves(architecture) == expected


def test_a_name_is_the_end_of_a_path_at_a_dot() -> None:
    with pytest.raises(TargetError, match='"proj" matches no layer'):
        paths("llama", targets="proj")
    assert len(paths("llama", targets="q_proj")) == 2
    assert paths("llama", targets="layers.1.self_attn.q_proj") == ["model.layers.1.self_attn.q_proj"]


def test_names_regular_expressions_and_all_linear_mix_and_keep_the_model_s_order() -> None:
    chosen = paths("llama", targets=(r"layers\.0\..*\.(v|q)_proj", "down_proj"))
    assert chosen == [
        "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    ]  # fmt: skip
    assert len(paths("llama", targets=("all-linear", "embed_tokens"))) == 15


def test_a_list_with_commas_holds_names_and_expressions() -> None:
    assert leaves("llama", targets="q_proj, (k|v)_proj") == {"q_proj", "k_proj", "v_proj"}
    assert len(paths("llama", targets=r"layers\.[0,1]\.mlp\.\w{2,9}_proj")) == 6


def test_layers_keeps_the_blocks_named() -> None:
    assert {layer_number(path) for path in paths("llama", layers="1")} == {1}
    assert {layer_number(path) for path in paths("bert", layers=[0])} == {0}
    with pytest.raises(TargetError, match=r'"all-linear" matches layers in blocks 0-1, but none in blocks 7\.'):
        paths("llama", layers="7")


def test_patterns_give_ranks_and_alphas_and_the_first_match_decides() -> None:
    spec = LoraConfig(
        rank=4,
        alpha=8,
        targets=("q_proj", "v_proj"),
        rank_pattern={r"layers\.1\..*": 2, "v_proj": 6},
        alpha_pattern={"layers.0.self_attn.v_proj": 3.5},
    )
    found = {
        choice.path.split("layers.")[1]: (choice.rank, choice.scale) for choice in choose(tiny_model("llama"), spec)
    }
    assert found == {
        "0.self_attn.q_proj": (4, 8 / 4), "0.self_attn.v_proj": (6, 3.5 / 6), "1.self_attn.q_proj": (2, 8 / 2),
        "1.self_attn.v_proj": (2, 8 / 2),
    }  # fmt: skip


def test_one_of_several_targets_that_matches_nothing_is_an_error_with_the_near_miss() -> None:
    with pytest.raises(TargetError) as caught:
        paths("llama", targets=("q_proj", "v_prj"))
    assert '"v_prj" matches no layer' in str(caught.value)
    assert 'Did you mean "v_proj"?' in str(caught.value)
    assert "gate_proj (2x)" in str(caught.value)


def test_a_pattern_key_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(TargetError, match=r'rank_pattern "k_proj" matches none of the 2 adapted layers'):
        paths("llama", targets="q_proj", rank_pattern={"k_proj": 2})
    with pytest.raises(TargetError, match="alpha_pattern"):
        paths("llama", targets="q_proj", alpha_pattern={"layers.9": 2.0})


def test_a_layer_of_another_kind_is_refused_by_its_kind() -> None:
    with pytest.raises(TargetError, match=r"names LlamaMLP, which cannot be adapted.*gate_proj"):
        paths("llama", targets="mlp")
    with pytest.raises(TargetError, match="LlamaRMSNorm"):
        paths("llama", targets="input_layernorm")


def test_a_head_tied_to_the_embedding_is_refused_and_an_untied_one_is_not() -> None:
    with pytest.raises(TargetError, match="shares its weight with the input embedding"):
        paths("gpt2", targets="lm_head")
    assert paths("llama", targets="lm_head") == ["lm_head"]


def test_a_module_that_torch_reads_without_calling_is_no_host() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})
    assert [choice.path for choice in choose(model, LoraConfig())] == ["out"]


@pytest.mark.parametrize("pattern", [r"(.|.)+[xyz]", r"(?:(\w)|(\w)|\.)+(?!)"])
def test_an_expression_that_never_ends_is_stopped(pattern: str) -> None:
    with pytest.raises(TargetError, match="takes too long to match"):
        paths("llama", targets=(pattern,))


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(TargetError, match="is not a valid regular expression"):
        paths("llama", targets=("(q_proj",))


def test_a_second_adapter_sees_hosts_and_not_the_first_adapter() -> None:
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(rank=2))
    add_adapter(adapters, LoraConfig(rank=2), name="second")
    assert set(adapters.adapters("second")) == set(adapters.adapters("default"))
    assert not any("base_layer" in path or "adapters" in path for path in adapters.layers)


def test_a_table_that_is_the_output_head_too_is_known() -> None:
    paths = ["transformer.wte", "transformer.wpe", "transformer.h.0.attn.c_attn"]
    assert tables_of_the_head(tiny_model("gpt2"), paths) == ["transformer.wte"]
    assert tables_of_the_head(tiny_model("llama"), ["model.embed_tokens", "lm_head"]) == []


@pytest.mark.parametrize(("layers", "absent"), [((1, 2, 3), "2-3"), ((0, 7), "7"), ((0, 3, 5, 6), "3, 5-6")], ids=str)
def test_blocks_that_are_not_there_are_refused_and_those_of_the_model_named(layers, absent):
    with pytest.raises(TargetError, match=rf"--layers names {absent}, but the targets are in blocks 0-1 of this"):
        choose(tiny_model("llama"), LoraConfig(layers=layers))
    assert choose(tiny_model("llama"), LoraConfig(layers=(0, 1)))
