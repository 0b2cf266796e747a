"""Fine-tune a model with the GPUs of a Ray cluster: each worker of Ray Train starts one process of the training.

    python examples/cluster/ray_train.py support.yaml --run support --workers 16 --folder /shared

`--folder` is one that all nodes see; it has the YAML file and the rows, and gets runs/. Ray gives each worker its rank
and the address of the first one, and the process gets them by the variables that torchrun would set. A worker that
fails is started again with all others, and they go on from the last checkpoint.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file of settings, in the folder")
    parser.add_argument("--run", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true", help="workers have cores and no GPUs")
    given = parser.parse_args()
    trainer = TorchTrainer(
        worker,
        train_loop_config={"config": given.config, "run": given.run, "folder": str(given.folder.resolve())},
        torch_config=TorchConfig(backend="gloo"),  # for the port alone; the training connects by itself
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=not given.cpu),
        run_config=RunConfig(
            name=given.run, storage_path=str(given.folder.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=3),
        ),
    )  # fmt: skip
    trainer.fit()


def worker(given: dict[str, Any]) -> None:
    """One process of the training, beside the worker, whose end ends it too."""
    own = ray.train.get_context()
    folder, rank = Path(given["folder"]), own.get_world_rank()
    errors = folder / "ray" / "errors" / f"{own.get_experiment_name()}-{own.get_node_rank()}" / str(rank)
    errors.mkdir(parents=True, exist_ok=True)
    (errors.parent / "ended.json").unlink(missing_ok=True)
    begin = "--resume" if any(folder.glob(f"runs/{given['run']}/checkpoints/step-*")) else "--restart"
    environment = os.environ | {
        "RANK": str(rank), "WORLD_SIZE": str(own.get_world_size()),
        "LOCAL_RANK": str(own.get_local_rank()), "LOCAL_WORLD_SIZE": str(own.get_local_world_size()),
        "GROUP_RANK": str(own.get_node_rank()), "MASTER_PORT": str(shared_port()),
        "TORCHELASTIC_RUN_ID": own.get_experiment_name(), "TORCHELASTIC_ERROR_FILE": str(errors / "error.json"),
        "HF_HOME": os.environ.get("HF_HOME", str(folder / "huggingface")),
    }  # fmt: skip
    words = ["train", given["config"], "--run", given["run"], begin]
    subprocess.run([sys.executable, "-m", "rankwise", *words], cwd=folder, env=environment, check=True)


def shared_port() -> int:
    """A free port of the first worker's machine, for all of them."""
    from torch import distributed

    ports = [0]
    if distributed.get_rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            ports = [free.getsockname()[1]]
    distributed.broadcast_object_list(ports)
    return ports[0]


if __name__ == "__main__":
    main()
