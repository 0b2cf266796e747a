"""The files of examples/cluster: Slurm's script runs with stand-ins, is stopped and put back; the commands of all go on
from a checkpoint where there is one, and torchrun and rankwise understand them; no field is one that the formats lack.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from torch.distributed.run import get_args_parser

import rankwise as package
from kit.library import rows
from rankwise.cli.main import app

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
SETTINGS = """\
model: {name: base, dtype: float32}
data: rows.jsonl
training: {steps: 400, batch_size: 2, checkpoint_steps: 2, backend: eager}
"""
SRUN = """#!/bin/bash
while [ "$1" != torchrun ]; do shift; done
trap 'kill -TERM $(jobs -p)' TERM
for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & done
code=0
for one in $(jobs -p); do
    while kill -0 "$one" 2> /dev/null; do wait "$one"; got=$?; done
    [ "$got" = 0 ] || code=$got
done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" > requeued; fi
"""
RECORD = """#!/bin/bash
printf '%s\\0' "$@" > words
"""
VARIABLES = {
    "SLURM_JOB_NODELIST": "nodes-[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1",
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip


def yaml_of(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(CLUSTER / name)


def scripts() -> dict[str, str]:
    """What each file has a shell do on a machine."""
    pod = yaml_of("pytorchjob.yaml")["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "-c"]
    return {
        "slurm": (CLUSTER / "slurm.sh").read_text(), "kubernetes": container["args"][0],
        "skypilot": yaml_of("skypilot.yaml")["run"].replace("cd /shared\n", ""),
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path


def stand_in(folder: Path, **programs: str) -> dict[str, str]:
    """The environment of a job, in which these programs come first."""
    for name, text in programs.items():
        file = folder / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    here, source = Path(sys.executable).parent, Path(package.__file__).parents[1]
    path = os.pathsep.join([str(folder / "bin"), str(here), os.environ["PATH"]])
    return os.environ | VARIABLES | {
        "PATH": path, "PYTHONPATH": str(source), "SLURM_JOB_ID": str(os.getpid()), "SLURM_SUBMIT_DIR": str(folder)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["slurm", "kubernetes", "skypilot"])
@pytest.mark.parametrize("begun", [False, True])
def test_the_same_command_begins_and_goes_on(name: str, begun: bool, folder: Path) -> None:
    if begun:
        (folder / "runs/support/checkpoints/step-00000002").mkdir(parents=True)
    one_node = SRUN.replace('"$SLURM_JOB_NUM_NODES"', "1")
    environment = stand_in(folder, torchrun=RECORD, srun=one_node, scontrol=SCONTROL)
    subprocess.run(["bash", "-c", scripts()[name]], cwd=folder, env=environment, check=True)
    words = (folder / "words").read_text().split("\0")[:-1]
    given = get_args_parser().parse_args(words)
    assert given.module and given.training_script == "rankwise"
    own = [word for word in given.training_script_args if word != "--"]
    assert own == ["train", "support.yaml", "--run", "support", "--resume" if begun else "--restart"]
    command = typer.main.get_command(app).commands["train"]  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "support.yaml").touch()
    parsed = command.make_context("train", own[1:]).params
    assert (parsed["resume"], parsed["restart"]) == (begun, not begun)
    if name != "kubernetes":  # there the operator tells torchrun by variables
        assert (given.nnodes, given.nproc_per_node) == (
            "2",
            VARIABLES["SLURM_GPUS_ON_NODE"] if name == "slurm" else "8",
        )


@pytest.mark.slow
def test_slurms_script_trains_on_two_nodes_and_is_put_back_before_its_time_is_over(
    folder: Path, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, folder / "base")
    (folder / "rows.jsonl").write_text(rows(12))
    (folder / "support.yaml").write_text(SETTINGS)
    job = subprocess.Popen(
        ["bash", CLUSTER / "slurm.sh"], cwd=folder, env=stand_in(folder, srun=SRUN, scontrol=SCONTROL),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        checkpoints, until = folder / "runs/support/checkpoints", time.monotonic() + 300
        while not any(checkpoints.glob("step-*")) and job.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        _, said = job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    manifest = json.loads((folder / "runs/support/manifest.json").read_text())
    assert manifest["status"] == "interrupted", said[-3000:]
    assert manifest["machine"]["processes"] == 2
    assert any(checkpoints.glob("step-*")), "there is something to go on from"
    assert (folder / "requeued").read_text().split() == ["requeue", str(os.getpid())]
    assert "stopped. runs/support has the metrics so far" in said
    steps = [json.loads(line)["kind"] for line in (folder / "runs/support/metrics.jsonl").open()]
    assert 2 <= steps.count("step") < 400


def test_slurm_has_one_task_for_each_node_and_signals_the_script_alone() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1" and options["signal"].startswith("B:USR1@") and "requeue" in options
    assert int(options["signal"].partition("@")[2]) > int(re.search(r"--shutdown-timeout (\d+)", text)[1])  # pyright: ignore


POD = {
    "terminationGracePeriodSeconds": int,
    "containers": [{
        "name": str, "image": str, "workingDir": str, "command": [str], "args": [str],
        "env": [{"name": str, "value": str}], "resources": {"limits": {"nvidia.com/gpu": int}},
        "volumeMounts": [{"name": str, "mountPath": str}],
    }],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str},
                 "emptyDir": {"medium": str, "sizeLimit": str}}],
}  # fmt: skip
REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"spec": POD}}
JOB = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "nprocPerNode": str, "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int},
        "pytorchReplicaSpecs": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}  # fmt: skip
"""Names and types as in the CRD of the training operator 1.9, as far as they are used."""
TASK = {
    "name": str, "num_nodes": int, "volumes": {"/shared": str}, "envs": {"HF_HOME": str}, "setup": str, "run": str,
    "resources": {"infra": str, "accelerators": str, "use_spot": bool, "job_recovery": {"max_restarts_on_errors": int}},
}  # fmt: skip
"""As in SkyPilot's schema of a task."""


def misfits(value: Any, form: Any, where: str = "") -> list[str]:
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [where]
        return [wrong for key, one in value.items() for wrong in (
            misfits(one, form[key], f"{where}.{key}") if key in form else [f"{where}.{key}"]
        )]  # fmt: skip
    if isinstance(form, list):
        if not isinstance(value, list):
            return [where]
        return [wrong for one in value for wrong in misfits(one, form[0], f"{where}[]")]
    return [] if type(value) is form else [where]


def test_no_field_is_one_that_the_formats_lack() -> None:
    job, task = yaml_of("pytorchjob.yaml"), yaml_of("skypilot.yaml")
    assert misfits(job, JOB) == [] and misfits(task, TASK) == []
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    pods = job["spec"]["pytorchReplicaSpecs"]
    assert pods["Master"]["replicas"] == 1 and pods["Master"]["template"] == pods["Worker"]["template"]
    (container,) = pods["Master"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch", "the operator looks for it by this name"
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
    volumes = {one["name"] for one in pods["Master"]["template"]["spec"]["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    assert misfits(job | {"spec": {"nProcPerNode": "8"}}, JOB) == [".spec.nProcPerNode"]


def test_rays_example_is_python_and_gives_what_a_process_reads() -> None:
    text = (CLUSTER / "ray_train.py").read_text()
    names = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    launched, world = (
        (Path(package.__file__).parent / file).read_text() for file in ("system/launched.py", "training/world.py")
    )
    read = set(re.findall(r'"((?:[A-Z]+_)*[A-Z]+)"', launched + world)) - {"RANKWISE_LAUNCHER", "RANK"}
    assert {"WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "GROUP_RANK"} <= read <= names


def test_the_readme_names_every_file() -> None:
    text = (CLUSTER / "README.md").read_text()
    for file in CLUSTER.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text
    assert shlex.split(scripts()["kubernetes"].splitlines()[-1])[0] == "exec", "signals reach torchrun"
