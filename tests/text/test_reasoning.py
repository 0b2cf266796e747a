"""Reasoning in answers: learned or masked by a setting, and the prompt of training is the prompt of chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import rankwise
from conftest import tiny_model
from kit.families import BY_NAME, asked_prompts, hub_of, learned_texts, talk, written_by
from rankwise.config.data import DataConfig, SourceConfig
from rankwise.errors import DataError, TemplateError
from rankwise.exporting.served_jinja import served_jinja
from rankwise.rows.sources import open_source
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.rendering import render, renderings
from rankwise.rows.text.tokenize import tokenise
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import silent

THINKING = """\
{%- set ns = namespace(last_query_index=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_query_index = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' -%}
{%- set thought, said = '', m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last_query_index -%}
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}
{%- else -%}{{ said }}{%- endif -%}
{%- else -%}{{ m.content }}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}
"""
"""In the manner of Qwen3's: the last answer with its reasoning, and an empty thought where none is wanted."""
WITHOUT = "{%- if enable_thinking is defined and enable_thinking is false -%}"
ALWAYS = THINKING.replace(f"{WITHOUT}{{{{ '<think>\\n\\n</think>\\n\\n' }}}}{{%- endif -%}}", "{{- '<think>\\n' }}")
"""In the manner of models that always reason: the prompt begins the reasoning."""
EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"
QWEN3 = BY_NAME["qwen3"]
KINDS = ("qwen", "neox", "llama3")


def template_of(kind: str, reasoning: str, source: str = THINKING) -> ChatTemplate:
    return written_by(QWEN3, kind, source).with_reasoning(reasoning)


def learned(content: str, template: ChatTemplate) -> tuple[str, str]:
    """What comes before the loss, and the loss."""
    example = talk("How many?", content)
    tokens = tokenise(render(example, template), template.tokenizer)
    (text,) = learned_texts(tokens, template.tokenizer)
    whole = template.tokenizer.decode(list(tokens.ids))
    return whole[: whole.index(text)], text


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_thought_is_the_same_in_training_and_in_chat(kind: str) -> None:
    template = template_of(kind, "none")
    before, text = learned("Four.", template)
    assert before == template.text(talk("How many?", "").messages[:1], answer_next=True)
    assert before.endswith(f"assistant\n{EMPTY}") and text == "Four.<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_reasoning_is_learned_or_masked_and_the_prompt_is_that_of_chat(kind: str) -> None:
    asked = template_of(kind, "learn").text(talk("How many?", "").messages[:1], answer_next=True)
    assert asked.endswith("assistant\n")
    content = f"{THOUGHT}Four."
    assert learned(content, template_of(kind, "learn")) == (asked, f"{THOUGHT}Four.<|im_end|>")
    assert learned(content, template_of(kind, "mask")) == (asked + THOUGHT, "Four.<|im_end|>")
    assert learned("Four.", template_of(kind, "learn")) == (asked, f"{EMPTY}Four.<|im_end|>")
    assert learned("Four.", template_of(kind, "mask")) == (asked + EMPTY, "Four.<|im_end|>")
    for reasoning in ("learn", "mask"):
        template, example = template_of(kind, reasoning), talk("How many?", content)
        tokens = tokenise(render(example, template), template.tokenizer)
        (prompt,) = asked_prompts(example, template)
        assert list(tokens.ids[: len(prompt)]) == prompt, "token by token"


def test_a_template_that_begins_the_reasoning_in_its_prompt() -> None:
    asked = template_of("qwen", "learn", ALWAYS).text(talk("How many?", "").messages[:1], answer_next=True)
    assert asked.endswith("assistant\n<think>\n")
    content = f"{THOUGHT}Four."
    rest = THOUGHT.removeprefix("<think>\n")
    assert learned(content, template_of("qwen", "learn", ALWAYS)) == (asked, f"{rest}Four.<|im_end|>")
    assert learned(content, template_of("qwen", "mask", ALWAYS)) == (asked + rest, "Four.<|im_end|>")


def test_earlier_answers_are_learned_apart_where_the_template_drops_their_reasoning() -> None:
    example = talk("One?", f"{THOUGHT}Two.", "Two?", f"{THOUGHT}Four.")
    for reasoning, expected in (("learn", f"{THOUGHT}%s<|im_end|>"), ("mask", "%s<|im_end|>")):
        template = template_of("qwen", reasoning)
        parts = [tokenise(one, template.tokenizer) for one in renderings(example, template)]
        texts = [learned_texts(tokens, template.tokenizer) for tokens in parts]
        assert texts == [[expected % "Two."], [expected % "Four."]]


def test_reasoning_without_the_setting_or_that_a_template_drops_is_refused() -> None:
    example = talk("How many?", f"{THOUGHT}Four.")
    with pytest.raises(
        TemplateError, match=r"rows.jsonl:7: .*An answer has reasoning: set data.reasoning to learn or mask"
    ):
        render(example, template_of("qwen", "none"))
    for family in ("qwen3", "deepseek"):
        template = written_by(BY_NAME[family], "qwen").with_reasoning("learn")
        with pytest.raises(TemplateError, match=r"does not write the reasoning 'Two and two.' of the answer"):
            render(example, template)
    with pytest.raises(TemplateError, match="does not write the reasoning"):
        changed = THINKING.replace("thought.strip('\\n')", "thought | upper")
        render(example, template_of("qwen", "mask", changed))


def test_what_is_shown_of_an_answer_is_what_comes_after_its_reasoning() -> None:
    for source in (THINKING, ALWAYS):
        template = template_of("qwen", "learn", source)
        for text in (f"{THOUGHT}Four.<|im_end|>", "Two and two.\n</think>\n\nFour.<|im_end|>"):
            ids = template.tokenizer.encode(text)
            assert template.answers.read(ids) == "Four."
            if source == ALWAYS or text.startswith("<think>"):
                streamed = [template.answers.streamed(ids[:size]) for size in range(1, len(ids) + 1)]
                assert all("Four.".startswith(part) for part in streamed) and streamed[-1] == "Four."
    plain = template_of("qwen", "none")
    assert plain.answers.read(plain.tokenizer.encode("Four.<|im_end|>")) == "Four."


def read(spec: DataConfig, source: SourceConfig) -> tuple[Message, ...]:
    [[[example]]] = open_source(spec, source).chunks()
    return example.messages


def test_a_field_of_its_own_is_the_same_reasoning(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "How many?"}]
    tagged = [*turns, {"role": "assistant", "content": f"{THOUGHT}Four."}]
    apart = [*turns, {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}]
    for name, row in (("tagged", tagged), ("apart", apart)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": row}) + "\n")
    spec = DataConfig(path=str(tmp_path / "apart.jsonl"), reasoning="learn")
    tags, field = (
        read(spec, spec.all_sources[0].model_copy(update={"path": str(tmp_path / f"{name}.jsonl")}))
        for name in ("tagged", "apart")
    )
    assert tags == field and tags[-1].content == f"{THOUGHT}Four."
    without = DataConfig(path=str(tmp_path / "apart.jsonl"))
    reading = open_source(without, without.all_sources[0])
    assert not any(reading.chunks())
    ((_, problem),) = reading.skipped
    assert "'reasoning_content', which is not supported. Set data.reasoning to learn or mask." in problem


def test_a_run_asks_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub: PreTrainedTokenizerFast = hub_of(QWEN3, "qwen", THINKING)
    tiny_model("llama", vocab=len(hub)).save_pretrained("model")
    hub.save_pretrained("model")
    rows = [{"prompt": f"How many are {n}?", "completion": f"{THOUGHT}{n}."} for n in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lost = {}
    for reasoning in ("learn", "mask"):
        data = {"path": "rows.jsonl", "reasoning": reasoning}
        training = rankwise.TrainingConfig(steps=1, batch_size=8, learning_rate=0.01)
        experiment = rankwise.Experiment(model="model", data=data, run=reasoning, training=training)
        run = rankwise.train(experiment, callback=silent)
        lost[reasoning] = run.snapshot.recorded_data.loss_tokens
        template = rankwise.load_run(reasoning).model.template
        assert template.facts == run.model.template.facts and template.reasoning == reasoning
        assert template.text(talk("?", "").messages[:1], answer_next=True).endswith("assistant\n")
        assert served_jinja(template).startswith("{% set enable_thinking = true %}")
    thought = len(HubTokenizer(hub, [hub.eos_token_id]).encode(THOUGHT))
    assert lost["learn"] - lost["mask"] == len(rows) * thought
    with pytest.raises(DataError, match=r"set data.reasoning to learn or mask"):
        rankwise.train(rankwise.Experiment(model="model", data="rows.jsonl", run="none"), callback=silent)
