"""With compat="reference" we follow the authors' update rule step for step, in float64.

The other side is written out plainly, layer by layer, with the penalty in the loss and autograd throughout, a threshold
by sorting, and dictionaries of averages, as the reference code goes about it. It shares nothing with ours but torch.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.config.adapters import AdaLoraConfig
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

WIDTHS = {"first": (6, 10), "second": (10, 10), "third": (10, 3)}
RATE, STEPS, INITIAL = 5e-3, 60, 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name, (inside, outside) in WIDTHS.items():
            setattr(self, name, nn.Linear(inside, outside))

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Plain:
    """W + scale B diag(E) A in every layer."""

    def __init__(self, net, adapters, scale, gamma):
        self.net, self.scale, self.gamma = net, scale, gamma
        self.A, self.B, self.E = {}, {}, {}
        for name, adapter in adapters.adapters().items():
            self.A[name] = adapter.Q.detach().clone().requires_grad_()
            self.B[name] = adapter.P.detach().T.clone().requires_grad_()
            self.E[name] = adapter.strength.detach().clone()[:, None].requires_grad_()
        self.sensitivity, self.uncertainty = {}, {}

    def tensors(self):
        return {(kind, name): tensor for kind in "ABE" for name, tensor in getattr(self, kind).items()}

    def forward(self, x):
        for name in WIDTHS:
            layer = getattr(self.net, name)
            x = layer(x) + (x @ (self.A[name] * self.E[name]).T @ self.B[name].T) * self.scale
            x = torch.tanh(x) if name != "third" else x
        return x

    def penalty(self):
        norms = []
        for name in WIDTHS:
            for gram in (self.A[name] @ self.A[name].T, self.B[name].T @ self.B[name]):
                norms.append(torch.norm(gram - torch.eye(len(gram), dtype=gram.dtype), p="fro"))
        return self.gamma * sum(norms) / len(norms)

    def observe(self, beta1, beta2):
        for key, tensor in self.tensors().items():
            now = (tensor * tensor.grad).abs().detach()
            last = self.sensitivity.get(key, torch.zeros_like(now))
            self.sensitivity[key] = beta1 * last + (1 - beta1) * now
            last = self.uncertainty.get(key, torch.zeros_like(now))
            self.uncertainty[key] = beta2 * last + (1 - beta2) * (now - self.sensitivity[key]).abs()

    def scores(self):
        found = {}
        for name in WIDTHS:
            element = {kind: self.sensitivity[kind, name] * self.uncertainty[kind, name] for kind in "ABE"}
            found[name] = element["E"][:, 0] + element["A"].mean(1) + element["B"].mean(0)
        return found

    def mask(self, budget):
        scores = self.scores()
        threshold = torch.cat(list(scores.values())).sort().values[-budget]
        self.alive = {name: score >= threshold for name, score in scores.items()}
        self.hold()

    def hold(self):
        with torch.no_grad():
            for name, kept in self.alive.items():
                self.E[name][~kept] = 0


def cubic(step, first, last, warmup, decided):
    return int((first - last) * (1 - (step - warmup) / (decided - warmup)) ** 3 + last)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_scores_masks_and_weights_are_the_reference_s_at_every_step(interval, gamma):
    torch.manual_seed(0)
    net = Net().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 16, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(STEPS, 16, 3, generator=generator, dtype=torch.float64)
    warmup, final = round(0.1 * STEPS), round(0.3 * STEPS)
    spec = AdaLoraConfig(
        compat="reference", budget=2, initial=1.5, scale=16 / (INITIAL + 1e-5), interval=interval, final=0.3,
        orthogonality=gamma,
    )  # fmt: skip
    adapters = inject(net, spec, seed=2)
    for adapter in adapters.adapters().values():
        adapter.double()
    bare = Net().double()
    bare.load_state_dict({name.replace(".base_layer", ""): value for name, value in net.state_dict().items()
                          if "adapters" not in name})  # fmt: skip
    plain = Plain(bare, adapters, spec.scale, gamma)
    trainable = TrainableAdaLora(adapters, spec, STEPS)
    options = {"lr": RATE, "weight_decay": 0.01}
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), **options)
    assert all(group["rate"] == 1 for group in optimizer.param_groups)
    reference = torch.optim.AdamW(list(plain.tensors().values()), **options)
    decided = STEPS - final
    live = {name: getattr(net, name).adapter("default") for name in WIDTHS}
    changed = 0
    for step in range(STEPS):
        nn.functional.mse_loss(net(x[step]), y[step]).backward()
        trainable.add_penalty()
        trainable.before_step()
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)

        loss = nn.functional.mse_loss(plain.forward(x[step]), y[step]) + plain.penalty()
        loss.backward()
        reference.step()
        if step < decided:
            plain.observe(0.85, 0.85)
            if step > warmup and step % interval == 0:
                plain.mask(cubic(step, 9, 6, warmup, decided))
        elif step == decided:
            plain.mask(6)
        else:
            plain.hold()
        reference.zero_grad()

        for name, part in live.items():
            torch.testing.assert_close(part.Q, plain.A[name], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(part.P.T, plain.B[name], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(part.strength, plain.E[name][:, 0], rtol=1e-9, atol=1e-12)
        if step < decided:
            ours = trainable.importance.scores(trainable.triplets)
            torch.testing.assert_close(ours, torch.cat(list(plain.scores().values())), rtol=1e-9, atol=1e-18)
        if step > warmup and (step % interval == 0 or step >= decided):
            before, now = getattr(plain, "last", None), torch.cat([plain.alive[name] for name in live])
            assert torch.equal(trainable.alive, now)
            changed += before is not None and not torch.equal(before, now)
            plain.last = now
    assert changed > 1, "masks that never change would prove little"
    assert sum(int((part.strength != 0).sum()) for part in live.values()) == 6
