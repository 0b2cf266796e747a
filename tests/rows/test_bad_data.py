"""80 of 80 bad records and files (bad_data.py) are told with their place, stop a training, and are never trained on.

With --on-bad-row skip a bad row is counted and listed and changes nothing about the rows beside it; a damaged file is
refused all the same. Marks, line ends, rotated images and the like are read, with a remark where one is due.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.bad_data import GOOD, Case, Content, lines
from kit.bad_files import CASES, PETS
from kit.classifiers import encoder_folder
from kit.tagged import tagger_folder
from kit.vision_models import save_folder
from rankwise.commands.data import check
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.runs.data_report import DataReport

WITH_TOOLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OBJECTIVES = {"text": "causal-lm", "pairs": "preference", "labels": "sequence-classification",
              "tags": "token-classification", "spans": "token-classification", "images": "auto"}  # fmt: skip
Report = Callable[..., DataReport]


class Amounts(NamedTuple):
    """What a model would be trained on."""

    rows: int
    sequences: int | None
    tokens: int | None
    loss_tokens: int | None
    labels: Mapping[str, int] | None


def amounts(report: DataReport) -> Amounts:
    return Amounts(report.used, report.sequences, report.tokens, report.loss_tokens, report.labels)


@pytest.fixture(scope="module")
def models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A small model for each kind of rows; that of texts shows its tools."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_folder, folder / "text")
    (folder / "text" / "chat_template.jinja").write_text(WITH_TOOLS, encoding="utf-8")
    tagger = tagger_folder(folder / "tags")
    return {"text": folder / "text", "pairs": folder / "text", "labels": encoder_folder(folder / "labels"),
            "tags": tagger, "spans": tagger, "images": save_folder("vit", folder / "images")}  # fmt: skip


@pytest.fixture(scope="module")
def report(models: Mapping[str, Path]) -> Report:
    def made(kind: str, path: Path, **settings: Any) -> DataReport:
        data = DataConfig(path=str(path), **settings)
        return check(data, ModelConfig(name=str(models[kind])), objective=OBJECTIVES[kind])

    return made


@pytest.fixture(scope="module")
def wanted_amounts(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Amounts]:
    """What the good rows of a kind amount to by themselves."""

    @cache
    def made(kind: str) -> Amounts:
        folder = tmp_path_factory.mktemp(kind)
        path = write(folder, PETS if kind == "images" else {"x.jsonl": lines(*GOOD[kind])})
        return amounts(report(kind, folder if kind == "images" else path))

    return made


def write(folder: Path, files: Mapping[str, Content]) -> Path:
    """Make the files, and return the last one."""
    path = folder
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    return path


def problems_of(report: Report, case: Case, path: Path) -> tuple[str, ...]:
    """Why the rows are not trained on at all."""
    try:
        made = report(case.kind, path, **case.settings)
    except DataError as error:
        return (str(error),)
    return made.fatal


def is_told(case: Case, folder: Path, message: str) -> bool:
    """Whether a message of one line begins with the place and has the words of the reason."""
    first = message.splitlines()[0]
    place = first.startswith(f"{folder}/{case.where}")
    return place and all(word in first for word in case.said) and len(first) < 600 and first.isprintable()


def test_there_are_80_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 80


@pytest.mark.parametrize("case", [case for case in CASES if case.end != "read"], ids=lambda case: case.name)
def test_what_is_bad_stops_a_training_with_its_place_and_reason(case: Case, report: Report, tmp_path: Path) -> None:
    write(tmp_path, case.files)
    problems = problems_of(report, case, tmp_path / case.path)
    assert problems and is_told(case, tmp_path, problems[0]), problems


@pytest.mark.parametrize("case", [case for case in CASES if case.end == "dropped"], ids=lambda case: case.name)
def test_a_bad_row_is_left_out_and_counted(
    case: Case, report: Report, wanted_amounts: Callable[[str], Amounts], tmp_path: Path
) -> None:
    write(tmp_path, case.files)
    made = report(case.kind, tmp_path / case.path, on_bad_row="skip", **case.settings)
    assert (made.fatal, made.rows, made.skipped, sum(made.skipped_why.values())) == ((), 5, 1, 1)
    (skipped,) = made.skipped_rows
    assert skipped.where == f"{tmp_path}/{case.where}" and is_told(case, tmp_path, skipped.why), skipped
    assert amounts(made) == wanted_amounts(case.kind)


@pytest.mark.parametrize("case", [case for case in CASES if case.end == "refused"], ids=lambda case: case.name)
def test_a_damaged_file_is_refused_even_if_bad_rows_are_left_out(case: Case, report: Report, tmp_path: Path) -> None:
    write(tmp_path, case.files)
    skipping = Case(case.name, case.kind, {}, case.path, case.end, case.where, case.said, {"on_bad_row": "skip"})
    problems = problems_of(report, skipping, tmp_path / case.path)
    assert problems and is_told(case, tmp_path, problems[0]), problems


@pytest.mark.parametrize("case", [case for case in CASES if case.end == "read"], ids=lambda case: case.name)
def test_what_only_looks_bad_is_read_as_if_it_looked_good(
    case: Case, report: Report, wanted_amounts: Callable[[str], Amounts], tmp_path: Path
) -> None:
    write(tmp_path, case.files)
    made = report(case.kind, tmp_path / case.path)
    changes = [change.what for change in made.images.changes] if made.images is not None else []
    assert (made.fatal, made.skipped, amounts(made)) == ((), 0, wanted_amounts(case.kind))
    assert all(any(word in remark for remark in (*made.warnings, *changes)) for word in case.said)
