"""Uploaded rows as a training would read them: checked by the data report, with all problems at once and their lines.

OpenAI's pairs {"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"} are those of this package
under other names. They are written out line by line, so that a problem has the line of the uploaded file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from rankwise.config.data import DataConfig, StoppingCheck
from rankwise.config.preference import PreferenceConfig, as_pairs
from rankwise.data.preparing import checked, refuse_fatal
from rankwise.errors import DataError, RankwiseError, together
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.objectives.preference import Preference
from rankwise.serving.bodies import BadRequest
from rankwise.serving.tuning.files import CONTENT, PAIRS, Content

OF_PAIRS = ("input", "preferred_output", "non_preferred_output")
SAYS_NOTHING = ("parallel_tool_calls",)
"""Columns of OpenAI's rows that have no effect on what is learned."""
LONGEST_MESSAGE = 20_000


def data_of(path: Path, content: Content) -> DataConfig:
    """The settings by which a training reads an uploaded file."""
    data = DataConfig(path=str(path), ignore_columns=content.ignored, held_out=0, accept=get_args(StoppingCheck))
    return as_pairs(data) if content.pairs else data


def check_rows(folder: Path, filename: str, model: LoadedModel) -> Content:
    """BadRequest with everything that is wrong."""
    path = folder / CONTENT
    try:
        pairs = _is_of_pairs(path)
        if pairs:
            (folder / PAIRS).write_text("".join(_converted(path)), encoding="utf-8")
        writing = Preference(PreferenceConfig()).writing(model) if pairs else CAUSAL_LM.writing(model)
        path = folder / PAIRS if pairs else path
        content = Content(pairs=pairs, ignored=() if pairs else _ignored(path))
        report = checked(data_of(path, content), writing, folder)
        refuse_fatal(report)
    except RankwiseError as error:
        message = str(error).replace(str(path), filename).replace(str(folder / CONTENT), filename)
        message = message.replace("To leave them out, use --on-bad-row skip.", "Repair them, or leave them out.")
        raise BadRequest(message[:LONGEST_MESSAGE], parameter="file") from None
    return content.model_copy(update={"rows": report.rows})


def _ignored(path: Path) -> tuple[str, ...]:
    """Those columns without effect that a row has. What is no row is refused later, with the rest."""
    there = set[str]()
    with path.open("rb") as file:
        for line in file:
            if any(name.encode() in line for name in SAYS_NOTHING):
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    there.update(row if isinstance(row, dict) else ())
    return tuple(name for name in SAYS_NOTHING if name in there)


def _is_of_pairs(path: Path) -> bool:
    """By the first row, as formats are recognised everywhere."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool({"preferred_output", "non_preferred_output"} & row.keys())


def _converted(path: Path) -> Iterator[str]:
    problems = list[str]()
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield (json.dumps(_pair(json.loads(line))) if line.strip() else "") + "\n"
            except RecursionError:
                problems.append(f"{path}:{number}: the row is nested too deeply.")
            except DataError as error:
                problems.append(f"{path}:{number}: {error}")
            except ValueError:
                problems.append(f"{path}:{number}: the line is not JSON.")
    if problems:
        raise DataError(together(problems))


def _pair(row: Any) -> dict[str, Any]:
    """DataError with what is wrong, without file and line."""
    if not isinstance(row, dict):
        raise DataError("the row is not a JSON object.")
    if missing := [name for name in OF_PAIRS if name not in row]:
        raise DataError(f"the row has no {', '.join(missing)}.")
    if more := sorted(row.keys() - {*OF_PAIRS, *SAYS_NOTHING}):
        raise DataError(f"the row has {', '.join(map(repr, more))[:200]}, which pairs of answers do not have.")
    given = row["input"]
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise DataError('"input" must be an object with "messages", a list.')
    if more := sorted(given.keys() - {"messages", "tools", *SAYS_NOTHING}):
        raise DataError(f'"input" has {", ".join(map(repr, more))[:200]}, which is not read.')
    tools = {"tools": given["tools"]} if given.get("tools") else {}
    return {
        "prompt": given["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    } | tools
