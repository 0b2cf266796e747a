"""The Evaluate screen: scores of a run and its base on rows with answers, and the answers, wrong ones first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.config.tasks import MEANINGS
from rankwise.errors import ConfigError, DataError, RankwiseError
from rankwise.rows.files.files import records
from rankwise.studio.jobs import JobState, free_place, job_routes, start
from rankwise.studio.pages import Screen, SentForm, moved, read_form
from rankwise.studio.predict import rows_page, run_and_rows
from rankwise.studio.uploads import name_of, with_names

SCORES = ("exact", "json", "json_exact", "json_valid", "number", "rouge_1", "rouge_l", "bleu", "chrf", "tool_call")
"""Scores of answers that are written, which need nothing else to be set."""
MOST_ANSWERS = 200
COLUMNS = ("where", "reference", "prediction", "base_prediction")


def shown(request: Request) -> Response:
    """`run` is what is evaluated."""
    return _page(request, request.query_params.get("run", ""))


def _page(request: Request, run: str, problem: str = "") -> Response:
    return rows_page(request, run, "evaluate", problem, scores={name: MEANINGS[name] for name in SCORES})


async def begin(request: Request) -> Response:
    sent = await read_form(request)
    try:
        number = await run_in_threadpool(_begun, sent)
    except RankwiseError as error:
        return await run_in_threadpool(_page, request, sent.text("run"), str(error))
    return moved(f"/evaluations/{number}")


def _begun(sent: SentForm) -> str:
    (run, data), scores = run_and_rows(sent, needed=False), sent.every("score")
    if unknown := [one for one in scores if one not in SCORES]:
        raise ConfigError([f"There is no score {unknown[0][:40]!r}."])
    to = free_place(f"{Path(name_of(data) or data).stem[:60] or 'validation'}-{run}-answers", ".csv")
    given = [f"--data={data}"] * bool(data) + [f"--score={','.join(scores)}"] * bool(scores)
    return start(run, to, ("evaluate", run, *given, f"--out={to}", "--no-forgetting")).id


def details(state: JobState) -> dict[str, Any]:
    """The answers, those with the lowest first score first, and how many of them are not wholly right."""
    metrics: Mapping[str, Any] = (state.printed or {}).get("metrics") or {}
    try:
        rows = [(where, row) for where, row in records(Path(state.job.to)) if isinstance(row, dict)]
    except DataError:
        rows = []
    rising = (name for name in metrics if "lower is better" not in MEANINGS.get(name, ""))
    by = next((name for name in rising if rows and _number(rows[0][1].get(name)) is not None), None)
    answers = [_shown(where, row, metrics, by) for where, row in rows]
    if by is not None:
        answers.sort(key=lambda answer: answer["score"])
    wrong = sum(one["score"] < 1 for one in answers) if by is not None else 0
    return {"answers": answers[:MOST_ANSWERS], "by": by, "wrong": wrong, "count": len(rows), "meanings": MEANINGS}


def _shown(where: str, row: Mapping[str, Any], metrics: Mapping[str, Any], by: str | None) -> dict[str, Any]:
    """The row's own columns as the question, but for its reference; `where` is its place in the file of answers."""
    reference = row.get("reference", "")
    asked = [str(value) for name, value in row.items() if name not in (*metrics, *COLUMNS) and value != reference]
    return {
        "where": with_names(row["where"]) if "where" in row else f"row {where.rpartition(':')[2]}",
        "question": " · ".join(asked), "reference": reference, "prediction": row.get("prediction", "–"),
        "score": 0.0 if by is None else _number(row.get(by)) or 0.0,
    }  # fmt: skip


def _number(text: Any) -> float | None:
    """Tables of spreadsheets may have a decimal comma."""
    try:
        return None if text is None else float(str(text).replace(",", "."))
    except ValueError:
        return None


SCREEN = Screen(
    [Route("/evaluate", shown), Route("/evaluate/begin", begin, methods=["POST"]),
     *job_routes("/evaluations", "/evaluate", "evaluate_result.html", details)],
    label="Evaluate", path="/evaluate",
)  # fmt: skip
