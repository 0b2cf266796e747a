"""`rankwise compare`: compare evaluated runs with the first of them, item by item."""

from __future__ import annotations

from typing import Annotated

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, argument


def compare(
    runs: Annotated[
        list[str],
        argument("The run to compare with, then the other runs: names, folders, or files of `evaluate --out`."),
    ],
    as_json: Json = False,
) -> None:
    """Compare evaluated runs: scores with confidence intervals, settings, data and cost."""
    with report_failures(as_json):
        from rankwise.commands.compare import compare as compare_command
        from rankwise.reporting.comparison import comparison_report

        compared = compare_command(runs)
        document = comparison_report(compared.candidates, compared.comparisons, drawn=False)
        print_result(as_json, compared.summary(), *document.lines())
