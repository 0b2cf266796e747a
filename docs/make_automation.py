"""Write docs/automation.md and llms.txt: what scripts, and assistants that write them, need to know of every command.

    python docs/make_automation.py            # write both
    python docs/make_automation.py --check    # exit 1 if one of them is out of date

Flags come from the commands and from the settings, exit codes from the errors, the keys of JSON from the list that
tests/golden/test_surface.py compares with what the commands print, and titles of pages from the pages.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from rankwise import errors
from rankwise.cli.main import COMMANDS, app
from rankwise.config.settings import FLAGS

DOCS = Path(__file__).parent
PAGE, LLMS = DOCS / "automation.md", DOCS.parent / "llms.txt"
SURFACE = DOCS.parent / "tests" / "golden" / "surface.txt"
KINDS = {str: "text", int: "integer", float: "number", bool: "", Path: "path"}
OPENING = """\
# Commands for scripts

<!-- Made by `python docs/make_automation.py` from the commands. Edit their help texts, or the words in that file. -->

Every command takes `--json`: it prints one object on one line of stdout, and everything else on stderr (`watch`
prints a line for each record). With `--quiet`, stderr has warnings and errors alone. Without a terminal no command
asks a question: `runs delete` and `cache clean` need `--yes`. Paths are relative to the working folder, and a run
NAME is the folder `runs/NAME` in it.

```bash
rankwise data sample tickets --out tickets.csv
rankwise data check tickets.csv --text message --label queue --model minilm --json
rankwise train --model minilm --data tickets.csv --text message --label queue --run tickets --json
rankwise runs show tickets --json
rankwise predict tickets --text "You sent me the bill twice." --json
```

[llms.txt](../llms.txt) has whole sequences of commands, for the jobs that are asked for most.

## Exit codes

With `--json`, an error is an object with `error` (what is wrong and what to do), `kind` and `exit_code`. An exit code
of 1 with a traceback is a bug in rankwise.

"""
VARIABLES = """
## Environment

- `RANKWISE_CACHE`: the folder for downloads, converted models and encoded rows.
- `RANKWISE_DATA`: the folder of public data sets that evaluation tasks name.
- `RANKWISE_OFFLINE=1` or `HF_HUB_OFFLINE=1`: nothing is fetched.
- `OMP_NUM_THREADS`: how many threads compute; 1 where other work has the cores.
- `RANKWISE_DEBUG=1`: every error keeps its traceback.
"""
NOTATION = """
## Commands

Flags of settings stand once, in [the last part](#flags-of-settings). In the keys of JSON, `[]` is a list, `NAME`
stands for names of yours such as files, layers or tasks, and `null` says that there may be no value.
"""


def commands() -> Iterator[tuple[str, str, Any]]:
    """Every command: its part of --help, its words, and what typer made of it."""
    group: Any = typer.main.get_command(app)
    for part, members in COMMANDS.items():
        for member in members:
            name = (member.info.name or "") if isinstance(member, typer.Typer) else member.__name__
            yield from ((part, *one) for one in _with_inner(name.replace("_", "-"), group.commands[name]))


def _with_inner(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands") or command.invoke_without_command:
        yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from _with_inner(f"{name} {word}", inner)


def automation() -> str:
    keys, lines, before = keys_by_command(), [OPENING + exit_codes() + VARIABLES + NOTATION], ""
    for part, name, command in commands():
        lines += [f"## {part}\n"] if part != before else []
        lines.append(section(name, command, keys.get(name)))
        before = part
    return "\n".join([*lines, "## Flags of settings\n", *setting_flags(), ""])


def exit_codes() -> str:
    kinds = defaultdict[int, list[str]](list)
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and issubclass(thing, errors.RankwiseError) and thing.__module__ == errors.__name__:
            kinds[thing.exit_code].append(name)
    kinds[2] = [*[kind for kind in kinds[2] if kind != "RankwiseError"], "UsageError"]
    kinds[130].append("Interrupted")
    table = re.findall(r"^\| (\d+)([, \d]*) \| (.*) \|$", (DOCS / "runs.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = [f"| {code}{more} | {what} | {', '.join(kinds[int(code)])} |" for code, more, what in table]
    return "\n".join(["| code | meaning | kinds |", "|---|---|---|", *rows, ""])


def section(name: str, command: Any, keys: Mapping[str, Any] | None) -> str:
    annotations = inspect.signature(command.callback, eval_str=True).parameters
    own = [one for one in command.params if one.name in annotations]
    arguments = [one for one in own if one.param_type_name == "argument"]
    words = " ".join(one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments)
    lines = [f"### rankwise {f'{name} {words}'.strip()}", "", " ".join((command.help or "").split()), ""]
    for one in (*arguments, *(one for one in own if one not in arguments)):
        if not _is_setting(one) and one.name not in ("as_json", "quiet"):
            lines.append(f"- {_named(one)}{_kind(annotations[one.name].annotation)}: {' '.join(one.help.split())}")
    if settings := [f"`{one.opts[0]}`" for one in own if _is_setting(one)]:
        lines.append(f"- settings: {', '.join(sorted(settings))}")
    if keys is not None:
        lines += ["", "```", *(f"{key}: {_shape(inner)}" for key, inner in sorted(keys.items())), "```"]
    return "\n".join([*lines, ""])


def _is_setting(parameter: Any) -> bool:
    """A flag whose help is that of a setting. Others have the name of one, and a help of their own."""
    return parameter.name == "set_" or (
        parameter.name in FLAGS and re.match(r"\[default:|$", parameter.help) is not None
    )


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return "`" + " / ".join([*parameter.opts, *parameter.secondary_opts]) + "`"


def _kind(annotation: Any) -> str:
    """What follows a flag, in brackets."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    inner = [one for one in typing.get_args(annotation) if one is not type(None)]
    if typing.get_origin(annotation) is list:
        return f" ({KINDS[inner[0]]}, several)"
    kind = KINDS[inner[0] if inner and inner[0] in KINDS else annotation] if not _is_list(inner) else "text, several"
    return f" ({kind})" if kind else ""


def _is_list(inner: list[Any]) -> bool:
    return bool(inner) and typing.get_origin(inner[0]) is list


def keys_by_command() -> dict[str, dict[str, Any]]:
    """The keys of what `--json` prints, by command. Under a key stand the keys inside it, and under "" the kinds of its
    values."""
    found = dict[str, dict[str, Any]]()
    for line in SURFACE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("json "):
            continue
        path, _, kind = line.removeprefix("json ").partition("  ")
        command, *keys = path.split(".")
        if "error" in keys or command.endswith("]"):
            continue
        place: Any = found.setdefault(command, {})
        for key in keys:
            place = place.setdefault(key, {})
        place.setdefault("", []).append(kind)
    return found


def _shape(inner: dict[str, Any]) -> str:
    parts = [f"{key.replace('*', 'NAME')}: {_shape(one)}" for key, one in sorted(inner.items()) if key]
    return " or ".join([*["{" + ", ".join(parts) + "}"] * bool(parts), *inner.get("", [])])


def setting_flags() -> list[str]:
    return [
        f"- `{one.flag.name}`{_kind(one.kind)}: {' '.join(one.help.split())}"
        + (f" [default: {one.default}]" if one.default else "")
        for one in sorted(FLAGS.values(), key=lambda one: one.flag.name)
    ]


WAY = """\
# rankwise

> rankwise fine-tunes language models, text classifiers and image classifiers with LoRA, AdaLoRA or full fine-tuning,
> from the command line or Python, with or without a GPU. It checks the data, compares the result with the base model,
> and tests exports. This page is enough to go from a table to an export.

```
rankwise data sample tickets --out tickets.csv
rankwise train --model minilm --data tickets.csv --text message --label queue --run first --json
rankwise predict first --text "You sent me the bill twice." --json
```

**Rules for every command**

- Install: `pip install .` in a clone of the repository. Extras: `pip install ".[vision,schema]"`.
- `--json` prints one object on stdout and everything else on stderr. No command asks a question.
- Exit codes: 0 success; 1 failed while running; 2 bad input (the message says how to fix it); 3 the run is locked by
  another process; 4 out of memory or disk. With `--json`, an error is an object with `error`, `kind` and `exit_code`.
- `rankwise COMMAND --help` lists the flags. Any other setting: `--set KEY=VALUE`.
- A run is the folder `runs/NAME`. A name can't be reused: choose another `--run`, `--resume` a stopped run, or
  `--restart`.

**Data**

- Rows are CSV, TSV, JSON lines, JSON, Excel, Parquet or Arrow, or a folder of images. Known columns (`messages`,
  `prompt` and `completion`, `instruction` and `output`, `text` and `label`) need no flags. For others, write
  `--prompt "{question}" --completion "{answer}"` with column names in braces, or `--text` and `--label`.
- Run `data check` first. It exits with 2 if rows can't be used. Read `used`, `skipped_why`, `fatal`, `warnings`,
  `doubts` and `targets`. `--on-bad-row skip` skips bad rows.
- With 50 or more rows, 10 % are validation rows. `--held-out 40` or `20%` changes that. Take more if there are several
  classes with few rows.

**Model**

`--model` takes a starter model, a Hugging Face Hub id, a local folder or a GGUF file.

| starter | for | download |
|---|---|---:|
| `minilm` | text classification | 84 MB |
| `smollm2-135m` | writing | 93 MB |
| `qwen-0.5b` | writing, tool calls | 478 MB |
| `dinov2-small` | images | 90 MB |
| `efficientnet-lite0` | images, faster | 17 MB |

**Train and evaluate**

- `--epochs N` or `--steps N` sets the length. Without them, rankwise chooses it.
- `rankwise plan` takes the same flags as `train` and forecasts memory and step time on an idle machine.
- `evaluate` without `--data` scores the validation rows. For language models it also scores the base model and measures
  forgetting, which takes minutes on a CPU (`--no-forgetting` skips that).
- Continue from an adapter: `train --from RUN`. Quantised base model (QLoRA): `--quantize nf4` or `int8`.
- `export` prints `use`, how to load the result. `engines.NAME.status` is `right` if that program ran and gave the run's
  answers. `not_verified` says why none ran.

**Jobs**

Replace the `data sample` lines by your own file and column names.
"""
JOBS = {
    "Text classification. `message` and `queue` are columns.": """\
rankwise data sample tickets --out tickets.csv
rankwise data sample new-tickets --out new-tickets.csv
rankwise data check tickets.csv --text message --label queue --model minilm --json
rankwise train --model minilm --data tickets.csv --text message --label queue --run tickets --json
rankwise evaluate tickets --data new-tickets.csv --json
rankwise predict tickets --data new-tickets.csv --out sorted.csv --json
rankwise export tickets --to tickets-model --format merged --json
""",
    "JSON extraction, structured output (extra `schema`). `{fields}` is JSON text, or an object in JSON lines.\n"
    "`--schema infer` makes every answer follow the schema of the training rows.": """\
rankwise data sample orders --out orders.csv
rankwise data sample new-orders --out new-orders.csv
rankwise data check orders.csv --model smollm2-135m --json \\
  --prompt "Extract the fields as JSON: {email}" --completion "{fields}"
rankwise train --model smollm2-135m --data orders.csv --run orders --json \\
  --prompt "Extract the fields as JSON: {email}" --completion "{fields}" --schema infer
rankwise evaluate orders --data new-orders.csv --score json_exact,json,json_valid --json
rankwise predict orders --data new-orders.csv --out filled.csv --json
rankwise export orders --to orders-model --format merged --json
""",
    "Answers in a style (instruction tuning). The score `rouge_l` needs the extra `scores`. Other formats: `gguf` for\n"
    "llama.cpp, `ollama`, `peft` for the adapter alone.": """\
rankwise data sample replies --out replies.csv
rankwise data sample new-replies --out new-replies.csv
rankwise data check replies.csv --model smollm2-135m --prompt "{message}" --completion "{reply}" --json
rankwise train --model smollm2-135m --data replies.csv --run replies --json \\
  --prompt "{message}" --completion "{reply}"
rankwise evaluate replies --data new-replies.csv --score loss,rouge_l --json
rankwise generate replies --prompt "The label for returning my lamp is missing." --both --json
rankwise export replies --to replies-model --format merged --json
""",
    "Regression. Labels are numbers if any has a decimal part (4.5). Whole numbers, such as 1 to 5 stars, are classes\n"
    "unless you add `--set classification.targets=numbers`.": """\
python -c "print('order,price'); [print(f'{n} maps,{n * 2.5}') for n in range(2, 90)]" > prices.csv
rankwise data check prices.csv --text order --label price --model minilm --json
rankwise train --model minilm --data prices.csv --text order --label price --run prices --json \\
  --set classification.targets=numbers
rankwise evaluate prices --json
rankwise predict prices --text "12 maps" --json
rankwise export prices --to prices-model --format merged --json
""",
    "Image classification (extra `vision`): a folder for each class. The example predicts on the training folder.": """\
rankwise data sample pictures --out pictures
rankwise data check pictures --json
rankwise train --model dinov2-small --data pictures --run products --epochs 3 --json
rankwise evaluate products --json
rankwise predict products --data pictures --out labelled.csv --json
rankwise export products --to products-model --format merged --json
""",
}
MORE = """\
6. Tool calls (function calling): JSON lines with `messages` and `tools` as in OpenAI's API, no `--prompt` or
   `--completion`, a model whose template writes tools such as `qwen-0.5b`, and `evaluate --score tool_call`.
7. OpenAI-compatible server (extra `serve`): `rankwise serve replies --port 8000`.
"""
FIRST = {
    "automation.md": "every command, flag, JSON key and exit code",
    "data.md": "row formats, columns, files, checks",
    "train.md": "methods, learning rate, validation, checkpoints",
    "evaluation.md": "scores, confidence intervals, forgetting",
    "export.md": "formats, and how each program loads them",
    "models.md": "model families, starter models, GGUF files",
    "troubleshooting.md": "error messages, causes, fixes",
    "python.md": "the Python API",
    "configuration.md": "every setting",
}
"""The pages that most jobs need, and what they have."""


def llms() -> str:
    jobs = [f"{number}. {what}\n\n```bash\n{words}```\n" for number, (what, words) in enumerate(JOBS.items(), 1)]
    pages = [DOCS / name for name in FIRST]
    rest = [page for page in sorted(DOCS.glob("*.md")) if page not in pages and page.name != "code.md"]
    lessons = sorted((DOCS / "tutorials").glob("*.md"))
    parts = {"Docs": pages, "Tutorials": lessons, "Optional": rest}
    links = [[f"## {title}\n", *map(_link, listed), ""] for title, listed in parts.items()]
    return "\n".join([WAY, *jobs, MORE, *(line for part in links for line in part)])


def _link(page: Path) -> str:
    title = (
        "Commands for scripts"
        if page == PAGE
        else page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    )
    note = FIRST.get(page.name, "")
    return f"- [{title}]({page.relative_to(LLMS.parent).as_posix()})" + (f": {note}" if note else "")


def main() -> int:
    made = {PAGE: automation(), LLMS: llms()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text(encoding="utf-8") != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
