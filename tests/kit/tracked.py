"""What trackers have of a run, read by their own readers: `{name: [(step, value), …]}`.

W&B's reader of offline files is a program that uploads them. Here its own message type reads the records, which lie in
blocks of 32 KiB (the log format of LevelDB).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER, OPENING = 32768, 7, 7


def by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking" / "tensorboard"), {"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def by_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "tracking" / "mlflow").resolve().as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("rankwise").experiment_id])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(one.step, one.value) for one in history] for name, history in histories.items()}


def by_trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    [run] = [one for one in Api().runs("rankwise") if one.name == folder.name]
    lines = SQLiteStorage.get_logs("rankwise", run.name, run_id=run.id)
    return collected((line["step"], line) for line in lines)


def by_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    [file] = (folder / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    return collected(history_of(file))


def history_of(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    from wandb.proto import wandb_internal_pb2

    for content in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            yield int(values["_step"]), values


def records_of(content: bytes) -> Iterator[bytes]:
    at, parts = OPENING, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def collected(lines: Iterator[tuple[int, dict[str, object]]]) -> dict[str, list[tuple[int, float]]]:
    every: dict[str, list[tuple[int, float]]] = {}
    for step, values in lines:
        for name, value in values.items():
            if "/" in name and isinstance(value, int | float):
                every.setdefault(name, []).append((step, float(value)))
    return every


READERS = {"tensorboard": by_tensorboard, "wandb": by_wandb, "mlflow": by_mlflow, "trackio": by_trackio}
