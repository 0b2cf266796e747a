"""Compare served templates with training's on thirty conversations, token id for token id, by the engines' renderers.

    python bench/template_parity.py --go go --llama PYTHON --out bench/results/template-parity-DATE

`--go` is Go's program: the Modelfile's template is rendered by Go's text/template with Ollama's rules
(tests/kit/go/render_templates.go). `--llama` is a Python with llama-cpp-python: its own formatter renders the Jinja
template of a GGUF file. Without them the renderers of rankwise stand in, and the result says so. The templates are
those of the starter, of the recipes, and of tests/kit/families.py and tests/kit/served_families.py. At the end, faults
are planted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kit.families import FAMILIES, template_of  # noqa: E402
from kit.served_families import EXPRESSIBLE, REFUSED  # noqa: E402
from rankwise.base.starters import STARTERS, index_copy  # noqa: E402
from rankwise.config.recipe import RECIPES, recipe_named  # noqa: E402
from rankwise.errors import TemplateError  # noqa: E402
from rankwise.exporting.ollama import adds_start, limits_of, ollama_template  # noqa: E402
from rankwise.exporting.served_jinja import as_openai, gguf_parity, served_jinja  # noqa: E402
from rankwise.exporting.template_parity import (  # noqa: E402
    Parity,
    conversations,
    template_parity,
)
from rankwise.rows.text.chat_template import ChatTemplate  # noqa: E402
from rankwise.rows.text.tokenizer import HubTokenizer  # noqa: E402
from rankwise.runs.records import silent  # noqa: E402

TALKS = [{"messages": [as_openai(m) for m in one.messages], "tools": list(one.tools)} for one in conversations()]
FAULTS = {
    "a line break is missing": ("<|im_start|>user\n", "<|im_start|>user"),
    "roles are swapped": ("<|im_start|>user", "<|im_start|>assistant"),
    "another end token is written": ("{{ .Content }}<|im_end|>", "{{ .Content }}<|im_start|>"),
    "the default system message is another": ("SmolLM, trained", "Smollm, trained"),
    "the generation prompt is missing": ("{{ end }}{{ end }}<|im_start|>assistant\n", "{{ end }}{{ end }}"),
    "a start token is written twice": ("{{ else }}<|im_start|>", "{{ else }}<|im_start|><|im_start|>"),
}


def templates() -> dict[str, ChatTemplate]:
    from transformers import AutoTokenizer

    hub = AutoTokenizer.from_pretrained(index_copy(STARTERS["smollm2-135m"], silent), local_files_only=True)
    tokenizer = HubTokenizer(hub, [hub.eos_token_id])
    named = {"starter smollm2-135m": ChatTemplate.of_model(tokenizer)}
    named |= {f"recipe {name}": ChatTemplate.of_recipe(tokenizer, recipe_named(name)) for name in RECIPES}
    families = (*FAMILIES, *EXPRESSIBLE, *(family for family, _ in REFUSED.values()))
    return named | {family.name: template_of(family, "qwen") for family in families}


def run(command: Sequence[str | Path], jobs: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def as_rendered(results: list[dict[str, str]]) -> Callable[[Sequence[Any], Sequence[Any]], str]:
    """A renderer that looks up what an engine has rendered."""

    def render(messages: Sequence[Any], tools: Sequence[Any]) -> str:
        place = next(n for n, one in enumerate(conversations()) if (one.messages, one.tools) == (messages, tools))
        if "text" not in results[place] or results[place].get("error"):
            raise TemplateError(results[place]["error"])
        return results[place]["text"]

    return render


def by_go(program: Path, template: ChatTemplate, text: str, stops: Sequence[str]) -> Parity:
    (results,) = run([program], [{"template": text, "conversations": TALKS}])
    served = ollama_template(template).served
    return template_parity(
        template, as_rendered(results), adds_start=adds_start(template), stops=stops,
        reasons=lambda one: limits_of(template, served, one),
    )  # fmt: skip


def by_llama(python: str, template: ChatTemplate) -> Parity:
    hub = template.tokenizer.hub
    job = {"template": served_jinja(template), "bos": hub.bos_token or "", "eos": hub.eos_token or ""}
    (results,) = run([python, ROOT / "bench" / "engines" / "jinja_formatter.py"], [job | {"conversations": TALKS}])
    return template_parity(template, as_rendered(results), adds_start=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--go")
    parser.add_argument("--llama")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"go": bool(options.go), "llama-cpp-python": bool(options.llama), "templates": {}}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "render"
        if options.go:
            subprocess.run([options.go, "build", "-o", program, ROOT / "tests/kit/go/render_templates.go"], check=True)
        for name, template in templates().items():
            row: dict[str, Any] = {}
            try:
                served = ollama_template(template)
                parity = by_go(program, template, served.served.go, served.stops) if options.go else served.parity
                row["ollama"] = parity.summary()
            except TemplateError as error:
                row["ollama"] = {"refused": str(error)}
            row["gguf"] = (by_llama(options.llama, template) if options.llama else gguf_parity(template)).summary()
            result["templates"][name] = row
            print(name, json.dumps(row, ensure_ascii=False), flush=True)
        if options.go:
            result["planted"] = planted(program, templates()["starter smollm2-135m"])
            print("planted:", json.dumps(result["planted"], ensure_ascii=False))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def planted(program: Path, template: ChatTemplate) -> dict[str, str]:
    """The first difference that each fault makes, or "not seen"."""
    served = ollama_template(template)
    right_text = served.served.go
    seen: dict[str, str] = {}
    for name, (right, wrong) in FAULTS.items():
        text = right_text.replace(right, wrong)
        assert text != right_text, name
        seen[name] = next(iter(by_go(program, template, text, served.stops).different), "not seen")
    stops = by_go(program, template, right_text, ["</s>"])
    seen["the engine stops at another token"] = next(iter(stops.different), "not seen")
    gemma = template_of(next(family for family in FAMILIES if family.name == "gemma"), "bare")
    without = ollama_template(gemma).served.go.replace("{{ range", "<bos>{{ range", 1)
    seen["the start token is there twice"] = next(
        iter(by_go(program, gemma, without, gemma.ends).different), "not seen"
    )
    lost = template_parity(gemma, lambda m, t: ollama_text(program, gemma, m, t), adds_start=False)
    seen["the start token is missing"] = next(iter(lost.different), "not seen")
    return seen


def ollama_text(program: Path, template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any]) -> str:
    talk = {"messages": [as_openai(one) for one in messages]}
    ((result,),) = run([program], [{"template": ollama_template(template).served.go, "conversations": [talk]}])
    return result["text"]


if __name__ == "__main__":
    main()
