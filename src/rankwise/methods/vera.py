"""VeRA, Kopiczko et al. 2023 (arXiv 2310.11454): each layer learns two vectors, over random matrices that all share.

    h = W x + b * (B (d * (A drop(x)))),   A (r, I),  B (O, r)  frozen,   d (r,)  and  b (O,)  trained

A and B are drawn once, as large as the largest layer, and a layer uses their first columns and rows. b starts at zero,
so an adapted layer starts as its host. The matrices are drawn as PEFT draws them from `projection_prng_key`, which is
the seed of the training, and are written beside the vectors. What was written is read as a LoRA of the same change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter, on_linear
from rankwise.adapters.base_layers import features_of
from rankwise.adapters.formats.peft import Stored
from rankwise.adapters.formats.peft_config import settings_of
from rankwise.adapters.formats.peft_reader import PREFIX
from rankwise.adapters.formats.vera import SHARED
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import chosen_paths, host_view
from rankwise.adapters.weights import Factors
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import VeraConfig
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.method import Setup

SAME = ("bias", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "target_modules")
"""Settings that PEFT's VeRA has as its LoRA has them."""


class VeRA(Adapter):
    """`A` and `B` are the layer's views of what all share, and no parameters or buffers of its own."""

    def __init__(self, A: Tensor, B: Tensor, d_initial: float, dropout: float) -> None:
        super().__init__(on_linear, 1.0, dropout)
        self.shared = (A, B)
        self.d = nn.Parameter(A.new_full(A.shape[:1], d_initial))
        self.b = nn.Parameter(B.new_zeros(B.shape[:1]))

    @property
    def rank(self) -> int:
        return len(self.d)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.shared
        return A * self.d[:, None], B * self.b[:, None]

    def pair(self) -> tuple[Tensor, Tensor] | None:
        A, B = self.factors()
        return None if self.drops else (A * self.scale, B)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        return self.applied(self.dropped(x), A * self.scale, B)


class TrainableVeRA(AdapterTrainable):
    def __init__(self, adapters: AdapterSet, config: VeraConfig, shared: Sequence[Tensor], key: int) -> None:
        super().__init__(adapters)
        self.config, self.shared, self.key = config, shared, key

    @property
    def layers(self) -> dict[str, VeRA]:
        return {path: one for path, one in self.adapters.adapters(self.name).items() if isinstance(one, VeRA)}

    @property
    def scale_setting(self) -> str:
        return f"adapter.d_initial ({self.config.d_initial:g})"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Vectors do without weight decay."""
        return [{"params": self.parameters(), "rate": 1.0, "weight_decay": 0.0}]

    def finish(self) -> None:
        """It stays what it is, since its vectors are what is written."""

    @torch.no_grad()
    def weaken(self, factor: float) -> None:
        for layer in self.layers.values():
            layer.b.mul_(factor)


class VeraMethod(AdapterMethod[VeraConfig]):
    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableVeRA:
        config, seed = self.config, setup.training.seed
        config.check_heads(setup.heads)
        sizes = {path: features_of(adapters.base_layer(path)) for path in chosen_paths(model.module, config)}
        inside, outside = (max(side) for side in zip(*sizes.values(), strict=True))
        A, B = (one.to(model.precision.device) for one in projections(config.rank, inside, outside, seed))
        adapters.add(
            (path, VeRA(A[:, :inputs], B[:outputs], config.d_initial, config.dropout))
            for path, (inputs, outputs) in sizes.items()
        )
        return TrainableVeRA(adapters, config, (A, B), seed)

    def stored(self, trainable: AdapterTrainable) -> Stored:
        assert isinstance(trainable, TrainableVeRA), "it was attached above"
        layers, config = trainable.layers, trainable.config
        hosts = {path: trainable.adapters.base_layer(path) for path in layers}
        as_lora = settings_of(
            {path: Factors(*layer.shared, 1.0) for path, layer in layers.items()}, hosts,
            host_view(trainable.adapters.model),
        )  # fmt: skip
        settings = {name: as_lora[name] for name in SAME} | {
            "d_initial": config.d_initial, "init_weights": True, "modules_to_save": None, "peft_type": "VERA",
            "projection_prng_key": trainable.key, "r": config.rank, "save_projection": True,
            "vera_dropout": config.dropout,
        }  # fmt: skip
        vectors = {
            f"{PREFIX}{path}.vera_lambda_{part}": vector.detach().to("cpu", torch.float32)
            for path, layer in layers.items() for part, vector in (("b", layer.b), ("d", layer.d))
        }  # fmt: skip
        return settings, vectors | {name: one.cpu() for name, one in zip(SHARED, trainable.shared, strict=True)}


def projections(rank: int, inside: int, outside: int, key: int) -> tuple[Tensor, Tensor]:
    """A (r, I) and B (O, r) as PEFT draws them: uniform, with a variance of 2 over the number of columns."""
    generator = torch.Generator().manual_seed(key)
    A, B = torch.empty(rank, inside), torch.empty(outside, rank)
    for matrix in (A, B):
        bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(matrix.shape[1]))
        matrix.uniform_(-bound, bound, generator=generator)
    return A, B
