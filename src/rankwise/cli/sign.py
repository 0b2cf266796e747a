"""`rankwise sign` and `rankwise verify`: a signature over a folder; `rankwise rebuild`: the same training again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, Json, Quiet, argument, option
from rankwise.errors import some
from rankwise.runs.listing import run_names

if TYPE_CHECKING:
    from rankwise.commands.provenance.rebuilding import Rebuilt

Folder = Annotated[str, argument(
    "A finished run, or an exported adapter's or model's folder.", autocompletion=run_names)]  # fmt: skip
Rows = Annotated[list[str] | None, option(
    "The rows it was trained on. Repeat the flag for several sources, in the same order, validation rows last.",
    "--data")]  # fmt: skip


def sign(
    folder: Folder,
    key: Annotated[Path, option("Your private key: an elliptic curve key in a PEM file.", "--key")],
    as_json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Sign a run or an exported model with your private key, including the hashes of its base model and rows."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.provenance.signing import sign as sign_command

        signed = sign_command(folder, key, display)
        print_result(as_json, signed, f"{signed.signature}: a signature of {signed.files} files")


def verify(
    folder: Folder,
    key: Annotated[Path | None, option(
        "The signer's public key (PEM file). Without it, the signer's identity isn't verified.", "--key")] = None,
    data: Rows = None, base_model: BaseModel = None, as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Verify a signature: check a folder, its base model and its rows, and list what changed."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.provenance.signing import verify as verify_command

        found = verify_command(folder, key, data or (), base_model, display)
        status = f"verified by {key}" if found.status == "verified" else found.status
        lines = [f"{found.folder}: {status}, {found.files} files compared"]
        lines += [f"  {name} was {how}" for how in ("changed", "added") for name in getattr(found, how)]
        lines += [f"  {name} is missing" for name in found.missing] + [f"  {one}" for one in found.elsewhere]
        lines += [f"  not compared: {some(found.not_compared)}"] * bool(found.not_compared)
        print_result(as_json, found, *lines)
        if found.status == "changed":
            raise typer.Exit(2)


def rebuild(
    folder: Folder, data: Rows = None, base_model: BaseModel = None,
    run: Annotated[str | None, option(
        "Name of the new run.  [default: the folder's name plus -rebuilt]", "--run")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Rebuild a result: train again with its settings and rows, and compare the weights."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.provenance.rebuilding import rebuild as rebuild_command

        rebuilt = rebuild_command(folder, data or (), base_model, run, display)
        print_result(as_json, rebuilt, *_outcome(rebuilt))
        if rebuilt.status == "different":
            raise typer.Exit(1)


def _outcome(rebuilt: Rebuilt) -> list[str]:
    if rebuilt.status == "same bytes":
        return [f"runs/{rebuilt.run}: the same weights as in {rebuilt.folder}, byte for byte"]
    far = f"  {rebuilt.folder} holds its weights in another form than training wrote them, so no distance is measured"
    if rebuilt.distance is not None:
        largest, share = rebuilt.distance
        far = f"  the largest difference is {largest:.3g}, and all together {share:.3g} of the weights (norms)"
    first = f"runs/{rebuilt.run}: not the same bytes in {some(rebuilt.differing)}"
    return [first, far, *(f"  {one}" for one in rebuilt.machine or ["versions, processor and threads are the same"])]
