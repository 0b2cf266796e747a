"""`rankwise studio`: the runs of this folder as a page in the browser."""

from __future__ import annotations

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ApiKey, Host, Json, Port, Quiet
from rankwise.errors import ConfigError
from rankwise.runs.records import StatusMessage
from rankwise.system.extras import need_extra

DRAIN = 1
"""Seconds that open answers get once the studio is stopped; a page that follows a run connects again."""


def studio(
    host: Host = "127.0.0.1", port: Port = 8321, api_key: ApiKey = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Show the runs of this folder in the browser: watch, start, compare, ask and export.

    Without a key, only this machine can open it. Trainings are processes of their own, and go on when the studio stops.
    With --json, an object on stdout has the address as soon as the studio is ready.
    """
    with report_failures(as_json):
        from rankwise.commands.serve import answer, bound
        from rankwise.serving.address import Address

        for module in ("uvicorn", "starlette", "jinja2"):
            need_extra(module, "rankwise studio", "studio", ConfigError)
        address = Address(host, port, api_key or None, ())
        address.check()
        with Display(quiet) as display, bound(address) as listening:
            from rankwise.studio.app import studio_app
            from rankwise.studio.security import Key

            if as_json:
                print_json({"url": address.url})
            display(StatusMessage(f"the studio is at {address.url} (Ctrl-C stops it; trainings go on)"))
            key = None if address.key is None else Key(address.key, address.port)
            answer(studio_app(key=key, host=address.host), listening, drain=DRAIN, connections=200)
            display(StatusMessage("stopped."))
