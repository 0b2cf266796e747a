"""`rankwise studio`: the runs of this folder as a page in the browser."""

from __future__ import annotations

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ApiKey, Host, Json, Port, Quiet


def studio(
    host: Host = "127.0.0.1", port: Port = 8321, api_key: ApiKey = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Show the runs of this folder in the browser: watch, start, compare, ask and export.

    Without a key, only this machine can open it. Trainings are processes of their own, and go on when the studio stops.
    With --json, an object on stdout has the address as soon as the studio is ready.
    """
    with report_failures(as_json):
        from rankwise.serving.address import Address
        from rankwise.studio.server import run_studio

        address = Address(host, port, api_key or None, ())
        with Display(quiet) as display:
            run_studio(address, display, print_json if as_json else None)
