"""A classifier's new head fitted to convergence on the frozen model's features, which training then begins with.

    min over W, b of  mean over rows of loss(W x + b) + penalty |W|^2 / 2        by L-BFGS, in float64

The loss is the objective's own. It is a convex problem, so there is one answer, and it costs one pass over the rows. Of
several penalties, relative to the features' size, the one with the least loss on rows that were left out is taken.
Rows are at most MOST; other parts of a head, such as a dense layer before its last one, stay as they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.objectives.loss import ClassLoss, target_loss, values_of, weight_of
from rankwise.rows.classes import balanced_weights
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

MOST, AT_ONCE, FOLDS, SEED = 5000, 4096, 5, 0
PENALTIES = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Relative to the mean squared length of a feature vector, from the strongest on, each begun with the last."""
BETTER = 0.98
"""The share of a constant's loss that a fit must be below."""
CONVERGED, NEARLY, STEPS = 1e-6, 1e-4, 300
"""The gradient's largest entry where the fit ends, and where a fit ends that only compares penalties."""
ALIKE = 1e-3
FEW = 50_000
"""Rows times outputs up to which every fold is left out once; of more, one is."""


@dataclass(frozen=True)
class Fitted:
    rows: int
    penalty: float
    gradient: float
    """The largest entry at the end."""


def fit_head(loss: ClassLoss, heads: Sequence[str], module: nn.Module, rows: Sequence[Tokens]) -> Fitted | None:
    """Write the fitted weights into the last linear layer of the module's `heads`. None, and no change, where the
    outputs are not those of such a layer, or where the features predict nothing."""
    targets, chosen = loss.targets, list(evenly(rows, MOST))
    layer = _last_layer(heads, module, targets.outputs)
    features = features_of(loss, module, layer, chosen) if layer is not None and chosen else None
    if layer is None or features is None:
        return None
    if targets.balanced:
        targets = targets.model_copy(update={"weights": balanced_weights(targets.counts)})
    problem = _Problem(features.double(), values_of(chosen, targets), targets, layer.bias is not None)
    if (penalty := problem.chosen_penalty()) is None:
        return None
    weights, gradient = problem.fit([penalty], CONVERGED)[-1]
    with torch.no_grad():
        layer.weight.copy_(weights[:, :-1] if problem.bias else weights)
        if layer.bias is not None:
            layer.bias.copy_(weights[:, -1])
    return Fitted(len(chosen), penalty, gradient)


def _last_layer(heads: Sequence[str], module: nn.Module, outputs: int) -> nn.Linear | None:
    layers = [
        part for path in heads for part in module.get_submodule(path).modules()
        if isinstance(part, nn.Linear) and part.out_features == outputs
    ]  # fmt: skip
    return layers[-1] if layers else None


@torch.no_grad()
def features_of(loss: ClassLoss, module: nn.Module, layer: nn.Linear, rows: Sequence[Tokens]) -> Tensor | None:
    """What the layer reads of each row (N, D); of a decoder, at the last token. None where the layer's outputs there
    are not the classifier's."""
    device, read = layer.weight.device, list[Tensor]()
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids), reverse=True)
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    parts = list[Tensor]()
    try:
        for batch in loss.batches([rows[at] for at in order], AT_ONCE):
            there = batch.to(device)
            outputs, given = loss.predict(module, there), read.pop()
            if given.dim() == 3 and "attention_mask" in there.inputs:
                given = given[torch.arange(len(given), device=device), there.inputs["attention_mask"].sum(1) - 1]
            if given.dim() != 2 or len(given) != len(outputs):
                return None
            again = layer.forward(given).to(outputs.dtype).reshape(outputs.shape)  # without the hook
            if not torch.allclose(again, outputs, ALIKE, ALIKE):
                return None
            parts.append(given.float().cpu())
    finally:
        hook.remove()
    return torch.cat(parts)[torch.from_numpy(np.argsort(order))]


@dataclass(frozen=True)
class _Problem:
    features: Tensor
    values: Tensor
    targets: TargetFacts
    bias: bool

    @property
    def scale(self) -> float:
        return max(float((self.features**2).sum(1).mean()), 1e-12)

    def chosen_penalty(self) -> float | None:
        """None where no penalty predicts the rows that were left out better than a constant does."""
        if len(self.features) < 2 * FOLDS:
            return None
        folds = np.random.default_rng(SEED).permutation(len(self.features)) % FOLDS
        count = FOLDS if len(self.features) * self.targets.outputs <= FEW else 1
        losses = np.zeros(1 + len(PENALTIES))
        for fold in range(count):
            apart = torch.from_numpy(folds == fold)
            left, fitted = (
                replace(self, features=self.features[part], values=self.values[part]) for part in (apart, ~apart)
            )
            fits = fitted.fit(PENALTIES, NEARLY)
            losses += [float(fitted.constant_on(left)), *(float(left.loss(weights)) for weights, _ in fits)]
        best = int(losses.argmin())
        return PENALTIES[best - 1] if losses[best] < BETTER * losses[0] else None

    def constant_on(self, other: _Problem) -> Tensor:
        """The loss of other rows by a bias alone."""
        alone, left = (replace(one, features=one.features[:, :0]) for one in (self, other))
        zeros = torch.zeros(self.targets.outputs, 0, dtype=torch.float64)
        return left.loss(alone.fit((0.0,), NEARLY)[0][0] if self.bias else zeros)

    def loss(self, weights: Tensor) -> Tensor:
        features = self.features
        outputs = features @ weights[:, :-1].T + weights[:, -1] if self.bias else features @ weights.T
        outputs = outputs if self.targets.classes else outputs[:, 0]
        return target_loss(outputs, self.values, self.targets) / weight_of(self.values, self.targets)

    def fit(self, penalties: Sequence[float], converged: float) -> list[tuple[Tensor, float]]:
        """The weights (C, D), with the bias as the last column, and the gradient's largest entry, for each penalty.
        Where there is a bias, features are centred, which changes the bias alone and needs far fewer steps."""
        size, width, scale = self.targets.outputs, self.features.shape[1], self.scale
        mean = self.features.mean(0) if self.bias else torch.zeros(width, dtype=torch.float64)
        centred = replace(self, features=self.features - mean)
        weights = torch.zeros(size, width + self.bias, dtype=torch.float64, requires_grad=True)
        found = list[tuple[Tensor, float]]()
        for penalty in penalties:

            def closure(strength: float = penalty * scale) -> Tensor:
                weights.grad = None
                total = centred.loss(weights) + strength / 2 * (weights[:, :width] ** 2).sum()
                total.backward()
                return total

            solver = torch.optim.LBFGS(
                [weights], max_iter=STEPS, tolerance_grad=converged, tolerance_change=0.0, history_size=20,
                line_search_fn="strong_wolfe",
            )  # fmt: skip
            solver.step(closure)
            closure()
            assert weights.grad is not None, "it was computed"
            own = weights.detach().clone()
            if self.bias:
                own[:, -1] -= own[:, :-1] @ mean
            found.append((own, float(weights.grad.abs().max())))
        return found
