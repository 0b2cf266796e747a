"""One process on all rows = two processes with half of them each: the same ranks live, the same numbers come out.

Run as a program, `RANK FOLDER`, this file is one of the two processes. How such a loop is written stands in
`trained`; what is its own is that DistributedDataParallel is built anew when the ranks are decided.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import rankwise
from rankwise.adapters.importance import Importance
from rankwise.config.adapters import AdaLoraConfig
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

STEPS, WORLD, ROWS = 24, 2, 12
pytestmark = pytest.mark.slow  # for its fixtures
TARGETS = ["up", "mid", "down"]
SPECS = {
    "shrunk": AdaLoraConfig(budget=2, initial=2, targets=TARGETS, interval=2),
    "masked": AdaLoraConfig(budget=2, initial=2, targets=TARGETS, interval=1, shrink=False),
    "by cost": AdaLoraConfig(budget="120 parameters", initial=2, targets=TARGETS, interval=3, importance="before"),
}


class Net(nn.Module):
    """A layer that is used twice, and layers of unequal widths."""

    def __init__(self):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.down(torch.tanh(self.mid(torch.tanh(self.mid(torch.tanh(self.up(x)))))))


def trained(spec, wrap, rows):
    """`wrap` makes of the model what is called; after each step the mask and all parameters, by step and name."""
    torch.manual_seed(0)
    model = Net().double()
    adapters = inject(model, spec, seed=3)
    for adapter in adapters.adapters().values():
        adapter.double()
    trainable = TrainableAdaLora(adapters, spec, STEPS)
    optimizer = torch.optim.AdamW([dict(group, lr=1e-2 * group["rate"]) for group in trainable.parameter_groups()])
    called, seen = wrap(model), {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(ROWS, width, generator=generator, dtype=torch.float64) for width in (8, 4))
        F.mse_loss(called(x[rows]), y[rows]).backward()  # here the gradients become the mean over all processes
        trainable.add_penalty()
        nn.utils.clip_grad_norm_([trainable.triplets.vectors, trainable.triplets.strengths], 1.0)
        trainable.before_step()
        optimizer.step()
        before = trainable.final
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
        seen[f"{step}.kept"] = trainable.alive.clone()
        seen[f"{step}.ranks"] = torch.tensor(trainable.triplets.ranks)
        for path, adapter in adapters.adapters().items():
            seen |= {f"{step}.{path}.{name}": value.detach().clone() for name, value in adapter.named_parameters()}
        if trainable.final and not before:
            called = wrap(model)  # the parameters are other objects now, and the old wrapper waits for the old ones
    return seen


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    share = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD)
    for name, spec in SPECS.items():
        save_file(trained(spec, DistributedDataParallel, share), Path(folder, f"{name}-{rank}.safetensors"))
    Importance.scores = lambda self, triplets: torch.rand(len(triplets)) + rank * torch.arange(len(triplets))
    seen = trained(SPECS["shrunk"], DistributedDataParallel, share)
    save_file(seen, Path(folder, f"disagreeing-{rank}.safetensors"))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with what each process saw."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            _, problem = process.communicate(timeout=100)
            assert process.returncode == 0, problem[-2000:].decode()
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.timeout(120)
@pytest.mark.parametrize("spec", SPECS)
def test_two_processes_with_half_of_the_rows_each_are_one_with_all(both, spec):
    first, second = (load_file(both / f"{spec}-{rank}.safetensors") for rank in range(WORLD))
    alone = trained(SPECS[spec], lambda model: model, slice(None))
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert first[name].shape == value.shape, name
        if value.is_floating_point():
            assert (first[name] - value).abs().max() <= 1e-10, name
        else:
            assert torch.equal(first[name], value), name
    ranks = [alone[f"{step}.ranks"].sum() for step in range(STEPS)]
    assert (ranks[-1] < ranks[0]) == SPECS[spec].shrink
    alive = [int(alone[f"{step}.kept"].sum()) for step in range(STEPS)]
    assert len(set(alive)) > 2, "ranks were taken in several steps"


@pytest.mark.timeout(120)
def test_where_scores_differ_one_process_decides_for_both(both):
    first, second = (load_file(both / f"disagreeing-{rank}.safetensors") for rank in range(WORLD))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
