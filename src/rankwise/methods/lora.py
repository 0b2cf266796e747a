"""LoRA and DoRA as a method: ranks that stay, a start at random or from the rows (EVA), and LoRA+'s learning rates."""

from __future__ import annotations

from typing import Any

from rankwise.adapters.dora import DoRA
from rankwise.adapters.lora import LoRA
from rankwise.adapters.set import AdapterSet
from rankwise.config.adapters import LoraConfig
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.eva_start import eva_start
from rankwise.methods.inject import add_layers
from rankwise.methods.method import Setup
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import RankRecord


class TrainableLoRA(AdapterTrainable):
    """With `b_rate` it is LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns at a multiple of A's rate. Of an
    embedding it is A that does: started at zero, A is what the correction grows by, and B the random frame that A is
    elsewhere.
    """

    def __init__(
        self, adapters: AdapterSet, config: LoraConfig | None = None, name: str = "default",
        ranks: RankRecord | None = None,
    ) -> None:  # fmt: skip
        super().__init__(adapters, name, ranks)
        self.config = config or LoraConfig()

    @property
    def scale_setting(self) -> str:
        return f"adapter.alpha ({self.config.alpha:g})"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A magnitude that decayed would take the base with it."""
        adapters, rate = self.adapters.adapters(self.name).values(), self.config.b_rate
        faster = [one.grown for one in adapters if isinstance(one, LoRA)] if rate != 1 else []
        magnitudes = [one.magnitude for one in adapters if isinstance(one, DoRA)]
        apart = {id(parameter) for parameter in faster + magnitudes}
        factors = [parameter for adapter in adapters for parameter in adapter.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in factors if id(parameter) not in apart], "rate": 1.0},
            {"params": faster, "rate": rate},
            {"params": magnitudes, "rate": 1.0, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]] + self.head_groups()


class LoraMethod(AdapterMethod[LoraConfig]):
    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableLoRA:
        choices, ranks = eva_start(self.config, model, setup) if self.config.start == "eva" else (None, None)
        add_layers(adapters, self.config, seed=setup.training.seed, choices=choices)
        return TrainableLoRA(adapters, self.config, ranks=ranks)

    def trainable(self, adapters: AdapterSet) -> TrainableLoRA:
        return TrainableLoRA(adapters, self.config)
